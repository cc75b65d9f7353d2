"""Clean stops on signals, and readers that go away."""

from __future__ import annotations

import fcntl
import signal
import time

import pytest

from tests import toy_engine
from tests.cli_tools import ended, start, told, wait_for


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "e"
    toy_engine.build(out)
    return out


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
