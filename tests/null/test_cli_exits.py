"""Every exit code, provoked in a process of its own; clean stops, full disks, readers that go away."""

from __future__ import annotations

import dataclasses
import json
import resource
import time

import pytest

from dsv2_compile import errors
from dsv2_compile.cli.failures import InternalError, InterruptedByUser, translate
from tests import toy_engine
from tests.cli_tools import SETTINGS, cli, ended, resealed, start, told


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "e"
    toy_engine.build(out)
    return out


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
    assert "GPU engines need" in told(ran, 5) or "NVIDIA driver" in ran.err
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
    ran = cli("synth", "tiny-lite", "-o", tmp_path / "m", *SETTINGS, before=small_files)
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
    errors.NotANumber: 4,
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
