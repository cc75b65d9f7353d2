"""Compilers that crash, hang or fail cost their own kernel only, and leave no process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from dsv2_compile import processes
from dsv2_compile.backends.cuda import pool
from dsv2_compile.backends.cuda.build_cache import BuildCache, Built
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.kernels.gpu import aot
from dsv2_compile.processes import Process, Worker
from tests import gpu_fakes, gpu_sources
from tests.compiling import H800, compile_fakes, jobs_asked
from tests.gpu_fakes import double, unlucky


@pytest.fixture
def cache(tmp_path):
    return BuildCache(tmp_path / "cache")


@pytest.fixture
def compiled(monkeypatch):
    return jobs_asked(monkeypatch)


def sleepers():
    """Processes that `gpu_sources` started in place of a compiler."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if gpu_sources.SLEEP.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            pass
    return found


def no_sleepers():
    """A killed process may take a moment to go."""
    end = time.monotonic() + 10
    while sleepers() and time.monotonic() < end:
        time.sleep(0.02)
    return not sleepers()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_compiler_that_crashes_or_fails_costs_its_own_kernel(cache, workers):
    kinds = ["none", "raise", "segfault", "exit"]
    found = compile_fakes([double(256), *map(unlucky, kinds), double(512)], cache, workers=workers)
    assert [c.ok for c in found] == [True, True, False, False, False, True]
    raised, crashed, ended = found[2:5]
    assert "no such tile" in raised.reason
    assert crashed.reason == "the compiler was ended by SIGSEGV"
    assert "Fatal Python error: Segmentation fault" in crashed.log
    assert ended.reason == "the compiler ended with status 3"
    for kind, failed in zip(kinds[1:], (raised, crashed, ended), strict=True):
        number = list(gpu_sources.MISHAPS).index(kind)
        assert [line for line in failed.log.splitlines() if "about to" in line] == [f"about to {number}"], "its own log"
        assert (failed.cubin, failed.usage, failed.report) == (None, None, None)


def test_a_compiler_that_hangs_costs_its_own_kernel(cache):
    for seconds in (5, 30, 120):  # the other kernel needs its time on a busy machine
        hung, after = compile_fakes([unlucky("hang"), double()], cache, workers=1, timeout=seconds)
        assert hung.reason == f"no answer in {seconds} s"
        assert no_sleepers()
        if after.ok:
            break
    assert after.ok and "about to" in hung.log


def test_failures_are_not_remembered(cache, compiled):
    for _ in range(2):
        (found,) = compile_fakes([unlucky("exit")], cache)
        assert not found.ok
    assert len(compiled) == 2


def test_a_compiler_whose_parent_is_gone_ends_by_itself(tmp_path):
    worker = Process(Worker(pool.MODULE), tmp_path)
    work = aot.job(gpu_fakes.UNLUCKY, {"KIND": 1}, {"num_warps": 1, "num_stages": 1}, "bf16", H800)
    worker.give(0, work, timeout=1.0)
    assert worker.pipe.poll(60) and worker.outcome() is None, "it is ready"
    assert worker._process.wait(timeout=60) == -signal.SIGALRM
    assert worker.stop() == -signal.SIGALRM
    assert no_sleepers()


@pytest.mark.parametrize("seen", [True, False])
def test_compilers_that_were_killed_while_idle_cost_no_job(seen, monkeypatch):
    """``seen``: it is known of them when the next job comes; if not, the job is lost with them and tried again."""
    configs = [{"BLOCK": n, "num_warps": 4, "num_stages": 1} for n in (256, 512, 1024)]
    jobs = [aot.job(gpu_fakes.DOUBLE, {}, config, "bf16", H800) for config in configs]
    if not seen:
        monkeypatch.setattr(Process, "ended", False)
    with pool.Pool(2) as compilers:
        assert all(isinstance(found, Built) for _, found in compilers.run(jobs[:2]))
        idle = list(compilers._workers._idle)
        for process in idle:
            os.killpg(process._process.pid, signal.SIGKILL)
            process._process.wait()
        assert idle and {i: type(found) for i, found in compilers.run(jobs)} == dict.fromkeys(range(3), Built)


def test_a_compiler_that_does_not_start_is_named(cache, monkeypatch):
    monkeypatch.setattr(processes, "_CODE", "import time; time.sleep(60)")
    monkeypatch.setattr(pool, "STARTING", 0.5)
    with pytest.raises(IncompatibleError, match="the compiler was not ready after"):
        compile_fakes([double()], cache)


def test_an_interrupt_leaves_no_process(cache):
    def interrupt(what, done, total):
        while not sleepers():
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_fakes([unlucky("hang"), double()], cache, workers=2, progress=interrupt)
    assert no_sleepers()
