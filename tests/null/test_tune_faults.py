"""What crashes, hangs and kills cost a sweep: their own configuration, or the trial that was at work. The device is a
declared simulation; the processes, the judge, the log and the sweep are the real ones."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dsv2_compile.autotune import base, lines
from dsv2_compile.autotune.log import TrialLog
from dsv2_compile.autotune.predicted import PredictedJudge
from dsv2_compile.autotune.record import MEASURED
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.trial import FAILED, OK, REFUSED
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.pool import Pool
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.kernels.gpu.work import Work
from dsv2_compile.processes import Failure, Worker, Workers
from tests.gpu_fakes import UNLUCKY
from tests.gpu_sources import MISHAPS
from tests.simulated_device import DEVICE, Simulation, simulated_sweep
from tests.tuning import H800, call, linear, norm, task

ROOT = Path(__file__).parents[2]
SLEEP = "86399.75"
"""Seconds that a planted hang sleeps, by which it is found among the processes."""
TASKS = [task(norm()), task(linear())]


def children(pid):
    """Processes that ``pid`` has started and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(pids, seconds=5.0):
    """None of ``pids`` is left, zombies apart, which wait for whoever adopted them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        left = [p for p in pids if alive(p)]
        if not left:
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def sleepers():
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if SLEEP.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


# processes


def test_a_hundred_faults_among_a_thousand_jobs_cost_no_other_job():
    """Half of them show at once, a quarter with a job that comes later, a quarter are errors that pass."""
    rng = random.Random(1)
    kinds = ["crash"] * 50 + ["spoil"] * 25 + ["raise"] * 25 + ["run"] * 900
    rng.shuffle(kinds)
    workers = Workers(Worker("tests.light_worker"), alone=True)
    try:
        with closing(workers.run([(k, i) for i, k in enumerate(kinds)], [60.0] * len(kinds))) as outcomes:
            found = dict(outcomes)
    finally:
        workers.close()
    assert len(found) == len(kinds)
    marked = {i for i, answer in found.items() if isinstance(answer, Failure)}
    assert marked == {i for i, k in enumerate(kinds) if k in ("crash", "raise")}
    assert all(found[i][0] == i for i in found.keys() - marked)
    assert {found[i].crashed for i in marked if kinds[i] == "raise"} == {False}


@pytest.mark.parametrize("count", [1, 3])
def test_what_hangs_is_killed_in_time_with_all_it_has_started(count):
    limit, jobs = 1.0, [("run", 0), ("hang", 1), ("run", 2)]
    workers = Workers(Worker("tests.light_worker", SLEEP), count, alone=True)
    start = time.monotonic()
    try:
        with closing(workers.run(jobs, [limit] * 3)) as outcomes:
            found = dict(outcomes)
    finally:
        workers.close()
    assert found[1].reason == "no answer in 1 s" and found[0][0] == 0 and found[2][0] == 2
    tries = 1 if count == 1 else 2  # with others at work it may be theirs: once more alone
    assert time.monotonic() - start < tries * (limit + 5)
    assert gone(sleepers())


def test_a_worker_that_hangs_before_it_is_ready_holds_up_nobody():
    """Its job is larger than what a socket takes of a message that nobody reads."""

    def overdue(*signal):
        pytest.fail("sending the job does not come back")

    workers, before = Workers(Worker("tests.stuck_worker", starting=2.0)), signal.signal(signal.SIGALRM, overdue)
    signal.alarm(20)
    try:
        ((_, found),) = workers.run([bytes(8 << 20)], [60.0])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        workers.close()
    assert isinstance(found, Failure) and not found.opened and "was not ready after 2 s" in found.reason


def test_a_process_that_was_killed_while_idle_is_given_nothing():
    workers = Workers(Worker("tests.light_worker"))
    try:
        ((_, (_, first)),) = workers.run([("run", 0)], [60.0])
        os.kill(first, signal.SIGKILL)
        assert gone([first])
        ((_, (number, second)),) = workers.run([("run", 1)], [60.0])
    finally:
        workers.close()
    assert number == 1 and second != first


def test_a_deadline_stops_what_is_at_work():
    workers, start = Workers(Worker("tests.light_worker", SLEEP)), time.monotonic()
    try:
        found = list(workers.run([("hang", 0), ("run", 1)], [60.0, 60.0], start + 1.0))
    finally:
        workers.close()
    assert found == [] and time.monotonic() - start < 6 and gone(sleepers())


def test_a_process_ends_with_its_parent_whatever_it_is_at():
    code = (
        "from dsv2_compile.processes import Worker, Workers\n"
        f"run = Workers(Worker('tests.light_worker', '{SLEEP}'), 2).run\n"
        "list(run([('hang', 0), ('hang', 1)], [1000.0, 1000.0]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    end = time.monotonic() + 30
    while len(sleepers()) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    started = children(parent.pid) + sleepers()
    assert len(started) == 4
    parent.kill()
    parent.wait()
    assert gone(started)


# compilers


def check_compilers(folder, crashes, monkeypatch):
    """Among them two that hang and a few configurations that compile. Each has its line in the log, with a reason."""
    kinds = list(MISHAPS)
    space = {"KIND": range(5), "num_warps": (1,), "num_stages": range(1, 100)}
    kernel = replace(
        UNLUCKY,
        space=space,
        constants=lambda dims, config: {"KIND": config["KIND"]},
        work=lambda dims, config, sizes: Work(1, 1, 1.0, 1.0),
    )
    monkeypatch.setitem(KERNELS, "unlucky", kernel)
    asked = [{"KIND": 2 + n % 2, "num_warps": 1, "num_stages": n + 1} for n in range(crashes)]
    asked += [{"KIND": k, "num_warps": 1, "num_stages": n} for n in (1, 2) for k in (0, 1, 4)]
    one = task(call("unlucky", {}, rows=1))
    log = TrialLog(folder / "log.jsonl")
    with Pool(2, timeout=8.0) as pool:
        judge = PredictedJudge(H800, pool, BuildCache(folder / "cache"))
        for trial in judge.judge(one, asked):
            log.add(one, "a test", trial, 1.0, False)
    found = {pairs(t.config): t for t in TrialLog(folder / "log.jsonl").of(one, "a test")}
    assert len(found) == len(asked) == len(lines.read(folder / "log.jsonl").objects)
    expected = {"segfault": FAILED, "exit": FAILED, "hang": FAILED, "raise": REFUSED}
    for config in asked:
        trial, kind = found[pairs(config)], kinds[config["KIND"]]
        assert trial.status == expected.get(kind, OK), (kind, trial)
        assert trial.reason or trial.ok


def test_compilers_that_crash_or_hang_cost_no_trial(tmp_path, monkeypatch):
    check_compilers(tmp_path, 5, monkeypatch)


# sweeps that are killed


@contextmanager
def sweeping(folder, simulation, trials=24):
    """The pid of a process that sweeps, forked: it need not import anything."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            simulated_sweep(folder, TASKS, simulation, trials)
            status = 0
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def count(folder):
    return len(lines.read(folder / "log.jsonl").objects)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def kill_parents_and_workers(folder, kills, seed):
    """One after the other, at random moments; the last sweep runs to its end."""
    rng = random.Random(seed)
    for kill in range(kills):
        with sweeping(folder, Simulation("h800", pause=0.03), 60 * kills) as pid:
            wait_for_more(folder)
            time.sleep(rng.uniform(0, 0.3))
            started = children(pid)
            if kill % 2:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                assert gone(started), "a process was left"
            else:
                for worker in started:
                    os.kill(worker, signal.SIGKILL)
                wait_for_more(folder)
    with sweeping(folder, Simulation("h800"), 60 * kills) as pid:
        assert os.waitpid(pid, 0)[1] == 0


def wait_for_more(folder):
    before = count(folder)
    wait_for(lambda: count(folder) > before)


def check_after_kills(folder, kills):
    found = lines.read(folder / "log.jsonl")
    assert len(found.damaged) <= kills
    seen = [(repr(o["key"]), pairs(o["config"])) for o in found.objects]
    assert len(set(seen)) == len(seen), "no trial was made again"
    assert {o["status"] for o in found.objects} == {OK}, "no innocent was marked"
    records = lines.read(folder / "records.jsonl").objects
    assert {r["key"]["kernel"] for r in records} == {"rms_norm", "linear"}


def test_kills_of_parents_and_workers_lose_no_trial_that_was_made(tmp_path):
    kill_parents_and_workers(tmp_path, 4, seed=7)
    check_after_kills(tmp_path, 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_soon_and_leaves_nothing(number, tmp_path):
    with sweeping(tmp_path, Simulation("h800", pause=0.05)) as pid:
        wait_for(lambda: count(tmp_path) > 2)
        started = children(pid)
        assert started
        start = time.monotonic()
        os.kill(pid, number)
        os.waitpid(pid, 0)
        assert time.monotonic() - start < 5
        assert gone(started)
    assert not lines.read(tmp_path / "log.jsonl").damaged


def test_records_of_the_simulation_are_never_used(tmp_path):
    with sweeping(tmp_path, Simulation("h800"), trials=6) as pid:
        assert os.waitpid(pid, 0)[1] == 0
    written = lines.read(tmp_path / "records.jsonl").objects
    assert len(written) == 2 and all(r["device"] == DEVICE and r["provenance"] == MEASURED for r in written)
    found = base.load([tmp_path / "records.jsonl"])
    assert not found.records and all("simulated" in why for why in found.refused) and len(found.refused) == 2
