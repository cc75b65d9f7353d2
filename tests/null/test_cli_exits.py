"""Every exit code, provoked in a process of its own; clean stops, full disks, readers that go away."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import resource
import signal
import time

import pytest

from dsv2_compile import errors
from dsv2_compile.cli.failures import InternalError, InterruptedByUser, translate
from tests import toy_engine
from tests.cli_tools import SMALL, cli, ended, resealed, start, wait_for


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "e"
    toy_engine.build(out)
    return out


def told(ran, code):
    """Cause and remedy, one line each at the end of standard error, no trace before them."""
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    error = next(i for i, line in enumerate(ran.lines) if line.startswith("error: "))
    assert ran.lines[-1].startswith("help: ")
    assert all(line.startswith("  - ") for line in ran.lines[error + 1 : -1])
    return ran.lines[error]


def test_0_ok(toy):
    ran = cli("run", toy, "ab")
    assert ran.code == 0
    assert len(ran.out) > 1


def test_1_internal_error_names_the_way_to_the_trace(toy):
    broken = "import dsv2_compile.runtime as r\nr.Engine.load = lambda *a: 1 / 0"
    ran = cli("run", toy, "ab", setup=broken)
    assert "internal error during: loading: ZeroDivisionError: division by zero" in told(ran, 1)
    assert "-v" in ran.lines[-1]
    traced = cli("run", toy, "ab", "-v", setup=broken)
    assert traced.code == 1
    assert "Traceback" in traced.err
    assert "ZeroDivisionError: division by zero" in traced.lines
    assert cli("run", toy, "ab", "--json", setup=broken).answer()["error"]["code"] == "InternalError"


def test_1_a_program_that_onnxruntime_cannot_run(tmp_path):
    """The manifest promises more positions than the program has a table for."""
    long = dataclasses.replace(toy_engine.CONFIG, max_position_embeddings=4096)
    toy_engine.build(tmp_path / "e", model=long, max_seq_len=4096)
    assert "could not run" in told(cli("run", tmp_path / "e", "x" * 3000), 1)


def test_2_usage(toy):
    told(cli("run", toy, "--no-such-flag"), 2)
    assert "empty" in told(cli("run", toy, stdin="\n"), 2)


def test_3_standard_input_that_is_no_text(toy):
    assert "not UTF-8" in told(cli("run", toy, stdin=b"ab\xff\xfe"), 3)


def test_3_malformed_tokenizer(toy, tmp_path):
    def spoil(root, manifest):
        (root / "tokenizer.json").write_text("{}")
        return manifest

    assert "tokenizer" in told(cli("run", resealed(toy, tmp_path / "e", spoil), "ab"), 3)


def test_3_checkpoint_of_another_model(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps({"model_type": "llama"}))
    ran = cli("build", tmp_path / "m", "--cpu", "-o", tmp_path / "e")
    told(ran, 3)
    assert "deepseek_v2" in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_4_an_engine_that_gives_nan(toy):
    ran = cli("run", toy, f"5 {toy_engine.NAN} 6", "--ids")
    assert "NaN" in told(ran, 4)


def test_5_an_engine_for_another_backend(tmp_path):
    toy_engine.build(tmp_path / "e", backend="cuda", target="h800")
    start_time = time.perf_counter()
    ran = cli("run", tmp_path / "e", "ab")
    assert "backend cuda, target h800" in told(ran, 5)
    assert time.perf_counter() - start_time < 5


def test_5_a_package_that_is_not_installed(toy, tmp_path):
    ran = cli("build", toy, "--cpu", "-o", tmp_path / "e", setup="sys.modules['torch'] = None")
    assert "torch cannot be imported" in told(ran, 5)
    assert "doctor" in ran.lines[-1]


def test_6_disk_full_on_standard_output(toy):
    with open("/dev/full", "wb") as full:
        for args in (["inspect", toy], ["inspect", toy, "--json"], ["run", toy, "ab"]):
            assert "No space left" in told(ended(start(*args, stdout=full)), 6)


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_6_a_file_that_cannot_grow(tmp_path):
    settings = [word for s in SMALL for word in ("--set", s)]
    ran = cli("synth", "tiny-lite", "-o", tmp_path / "m", *settings, before=small_files)
    assert "File too large" in told(ran, 6)
    assert list(tmp_path.iterdir()) == []


def test_6_out_of_memory_names_the_step(toy):
    broken = "import dsv2_compile.runtime as r\ndef load(*a): raise MemoryError\nr.Engine.load = load"
    assert "out of memory during: loading" in told(cli("run", toy, "ab", setup=broken), 6)


def test_6_a_container_that_is_out_of_memory(toy):
    """torch reports it as a RuntimeError."""
    broken = "import torch\nimport dsv2_compile.runtime as r\nr.Engine.load = lambda *a: torch.empty(1 << 60)"
    assert "out of memory" in told(cli("run", toy, "ab", setup=broken), 6)


def test_8_a_changed_byte(toy, tmp_path):
    def nothing(root, manifest):
        return manifest

    engine = resealed(toy, tmp_path / "e", nothing)
    assert cli("run", engine, "ab").code == 0
    data = bytearray((engine / "prefill.onnx").read_bytes())
    data[100] ^= 1
    (engine / "prefill.onnx").write_bytes(data)
    for command in (["run", engine, "ab"], ["verify", engine]):
        ran = cli(*command)
        assert "is not the engine that was built" in told(ran, 8)
        assert "  - prefill.onnx: SHA-256 differs" in ran.lines


def test_8_inspect_sees_sizes_and_still_shows_the_engine(toy, tmp_path):
    def nothing(root, manifest):
        return manifest

    engine = resealed(toy, tmp_path / "e", nothing)
    (engine / "decode.onnx").write_bytes(b"")
    (engine / "tokenizer.json").unlink()
    ran = cli("inspect", engine)
    told(ran, 8)
    assert "3 layers" in ran.out
    assert [line for line in ran.lines if line.startswith("  - ")] == [
        f"  - decode.onnx: 0 bytes, expected {(toy / 'decode.onnx').stat().st_size}",
        "  - tokenizer.json: missing",
    ]
    (engine / "manifest.json").write_text("{}")
    assert "damaged" in told(cli("inspect", engine), 8)


CODES = {
    errors.UsageError: 2,
    errors.ModelError: 3,
    errors.PassError: 3,
    errors.NumericError: 4,
    errors.IncompatibleError: 5,
    errors.ResourceError: 6,
    errors.PartialError: 7,
    errors.IntegrityError: 8,
    errors.Dsv2Error: 1,
}


@pytest.mark.parametrize("kind", CODES, ids=lambda k: k.__name__)
def test_the_code_of_each_error(kind, toy):
    """The only place where 7 can be seen: no command of this version ends partial."""
    broken = f"import dsv2_compile.runtime as r\nfrom dsv2_compile.errors import *\ndef load(*a): raise {kind.__name__}"
    broken += "('the cause', 'the remedy', ['one', 'two'])\nr.Engine.load = load"
    ran = cli("run", toy, "ab", setup=broken)
    assert told(ran, CODES[kind]) == "error: the cause"
    assert ran.lines[-3:] == ["  - one", "  - two", "help: the remedy"]
    error = cli("run", toy, "ab", "--json", setup=broken).answer()["error"]
    code = "InternalError" if kind is errors.Dsv2Error else kind.__name__
    assert error == {"code": code, "cause": "the cause", "remedy": "the remedy", "problems": ["one", "two"]}


# Signals

TELLS_WHEN_IT_READS = """
import dsv2_compile.cli.run as r
real = r._standard_input
r._standard_input = lambda: (print("reading", file=sys.stderr, flush=True), real())[1]
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_130_and_143_while_waiting_for_input(toy, number):
    process = start("run", toy, "--json", setup=TELLS_WHEN_IT_READS)
    wait_for(process, b"reading")
    process.send_signal(number)
    ran = ended(process)
    assert f"stopped by {number.name}" in told(ran, 128 + number)
    answer = ran.answer()
    assert answer["status"] == "interrupted"
    assert answer["error"]["code"] == "InterruptedByUser"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_130_and_143_in_the_middle_of_a_text(toy, number):
    """What was said stays, and the line is ended."""
    process = start("run", toy, "1 2 3", "--ids", "--max-new-tokens", "2000", "-q")
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # too small for all of it: it waits for us
    first = process.stdout.read(4)
    process.send_signal(number)
    ran = ended(process)
    told(ran, 128 + number)
    ids = (first.decode() + ran.out).removesuffix("\n").split(" ")
    assert 0 < len(ids) < 2000
    assert ran.out.endswith("\n")


SLOW_TO_STOP = """
import time, dsv2_compile.runtime as r
def load(*a):
    try:
        print("working", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print("cleaning", file=sys.stderr, flush=True)
        time.sleep(60)
r.Engine.load = load
"""


def test_a_second_signal_ends_the_clean_up(toy):
    process = start("run", toy, "ab", setup=SLOW_TO_STOP)
    wait_for(process, b"working")
    process.send_signal(signal.SIGINT)
    wait_for(process, b"cleaning")
    begin = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 143
    assert time.perf_counter() - begin < 30


def test_a_signal_ignored_by_the_parent_stays_ignored(toy):
    process = start("run", toy, "ab", setup=SLOW_TO_STOP, ignored=True)
    wait_for(process, b"working")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    wait_for(process, b"cleaning")
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 143


def test_a_reader_that_goes_away_ends_the_text_quietly(toy):
    process = start("run", toy, "1 2 3", "--ids", "--max-new-tokens", "2000")
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    ran = ended(process)
    assert ran.code == 0
    assert "Traceback" not in ran.err
    assert "error" not in ran.err
    made = int(ran.lines[-1].split("; ")[-1].split(" new tokens")[0])
    assert made < 2000


def test_a_reader_that_goes_away_does_not_hide_a_failure(toy, tmp_path):
    toy_engine.build(tmp_path / "e")
    (tmp_path / "e/decode.onnx").write_bytes(b"")
    process = start("inspect", tmp_path / "e")
    process.stdout.close()
    process.stdout = None
    told(ended(process), 8)


def test_nobody_to_tell(toy):
    """Standard error closed: the exit code is all there is."""
    process = start("run", toy, "--no-such-flag")
    process.stderr.close()
    process.stderr = None
    assert ended(process).code == 2


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [
        (MemoryError(), errors.ResourceError, 6),
        (OSError(28, "No space left on device", "x"), errors.ResourceError, 6),
        (OSError(122, "Disk quota exceeded"), errors.ResourceError, 6),
        (OSError(12, "Cannot allocate memory"), errors.ResourceError, 6),
        (OSError(13, "Permission denied"), InternalError, 1),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), errors.IncompatibleError, 5),
        (ModuleNotFoundError("No module named 'x'", name="dsv2_compile.x"), InternalError, 1),
        (KeyboardInterrupt(), InterruptedByUser, 130),
        (ValueError("two\nlines"), InternalError, 1),
    ],
    ids=repr,
)
def test_what_was_raised_and_what_it_becomes(raised, kind, code):
    error = translate(raised, "step")
    assert (type(error), error.exit_code) == (kind, code)
    assert error.__cause__ is raised
    assert "\n" not in error.cause + error.remedy
