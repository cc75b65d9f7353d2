"""The judge that measures, on a device that is a declared simulation: what it marks, what it takes for the fastest,
what it never believes. No time here is one of a GPU."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest

from dsv2_compile.autotune.measure import worker
from dsv2_compile.autotune.measure.jobs import Compare, Step, Subject
from dsv2_compile.autotune.measure.judge import candidates
from dsv2_compile.autotune.measure.stats import apart, margin
from dsv2_compile.autotune.measure.worker import impossible
from dsv2_compile.autotune.predict import bound
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.trial import FAILED, IMPOSSIBLE, OK, WRONG, Trial
from dsv2_compile.errors import PartialError
from dsv2_compile.kernels.gpu.kernel import KERNELS
from tests.simulated_device import (
    DEVICE,
    ENDLESS,
    ERRORS,
    TIMES,
    SimulatedBench,
    Simulation,
    microseconds,
    simulated_judge,
)
from tests.tuning import H800, linear, norm, task

BASE = dict(KERNELS["linear"].default(dict(linear().dims), H800)) | {"SPLIT_K": 1}
TASK = task(linear())


def configs(count, **fixed):
    """Different ones, the same each time."""
    space, found = KERNELS["linear"].space, {}
    rng = random.Random(count)
    while len(found) < count:
        config = {k: rng.choice(v) for k, v in space.items()} | {"SPLIT_K": 1} | fixed
        found[pairs(config)] = config
    return list(found.values())


def trials_of(simulation, asked, timeout=30.0):
    with simulated_judge(simulation, timeout) as judge:
        return {pairs(t.config): t for t in judge.judge(TASK, asked)}


# what is marked


def test_each_kind_of_mishap_is_told_and_costs_its_own_configuration():
    kinds = ["", "crash", "", "fault", "", "raise", "hang", "", "late fault", "", "wrong", *TIMES, ""]
    asked = configs(len(kinds))
    planted = {pairs(c): kind for c, kind in zip(asked, kinds, strict=True) if kind}
    start = time.monotonic()
    found = trials_of(Simulation("h800", planted), asked, timeout=2.0)
    assert time.monotonic() - start < 60
    expected = {"crash": FAILED, "fault": FAILED, "raise": FAILED, "hang": FAILED, "wrong": WRONG}
    expected |= dict.fromkeys(TIMES, IMPOSSIBLE)
    assert len(found) == len(asked)
    for config, kind in zip(asked, kinds, strict=True):
        assert found[pairs(config)].status == expected.get(kind, OK), (kind, found[pairs(config)])
    reasons = {kind: found[key].reason for key, kind in planted.items()}
    assert "SIGSEGV" in reasons["crash"] and "illegal memory access" in reasons["fault"]
    assert reasons["hang"] == "no answer in 2 s" and reasons["raise"] == "ValueError: as planted"
    assert all("the bound is" in reasons[kind] for kind in TIMES)
    assert all(t.microseconds == 0.0 for t in found.values() if not t.ok)
    assert all(t.microseconds > bound(TASK.call, H800) for t in found.values() if t.ok)
    assert all(t.facts["simulated"] for t in found.values() if t.ok)


def test_memory_that_an_earlier_configuration_has_left_none_of_is_no_fault_of_the_next():
    asked = configs(6)
    planted = {pairs(asked[1]): "leak", pairs(asked[4]): "large"}
    found = trials_of(Simulation("h800", planted), asked)
    assert [found[pairs(c)].status for c in asked] == [OK, OK, OK, OK, FAILED, OK]
    assert "CUDA_ERROR_OUT_OF_MEMORY" in found[pairs(asked[4])].reason


def test_a_device_that_is_lost_ends_the_sweep_and_marks_nobody(tmp_path):
    """What was measured before is kept, the configuration it went with is the only one that failed."""
    asked, gone = configs(4), tmp_path / "gone"
    found = []
    with simulated_judge(Simulation("h800", {pairs(asked[1]): "fault"}, gone=str(gone))) as judge:
        with pytest.raises(PartialError, match=r"SIMULATED.*cannot be opened any more: .*Xid 79") as e:
            for trial in judge.judge(TASK, asked):
                found.append(trial)
                gone.touch()
        assert e.value.exit_code == 7
        gone.unlink()
        again = list(judge.judge(TASK, asked[1:]))
    assert [t.status for t in found] == [OK]
    assert [t.status for t in again] == [FAILED, OK, OK]


def test_the_name_of_the_simulation_says_what_it_is():
    with simulated_judge(Simulation("h800")) as judge:
        assert judge.device == DEVICE and judge.device.startswith("SIMULATED")


# in this process: the logic of a measuring process on the simulation


class Here:
    """Measuring jobs in this process."""

    def __init__(self, simulation):
        self.answer, self.jobs = worker.answering(SimulatedBench(simulation), H800), []

    def run(self, jobs):
        for i, job in enumerate(jobs):
            self.jobs.append(job)
            yield i, self.answer(job)[0]


def judged(simulation, asked, monkeypatch, task=TASK):
    """The judge and its trials by configuration."""
    monkeypatch.setattr(worker, "PAUSE", 0.0)
    with simulated_judge(simulation) as judge:
        judge._measuring = Here(simulation)
        ranked = sorted((t for t in judge.judge(task, asked)), key=lambda t: t.microseconds)
        default = next((t for t in ranked if pairs(t.config) == task.config), None)
        won = judge.confirm(task, [t for t in ranked if t.ok], default)
        return judge, ranked, won


def with_default(asked):
    return [dict(TASK.config), *asked]


@pytest.mark.parametrize("kind", [*ERRORS, *TIMES, "raise"])
def test_what_is_fast_and_not_right_is_not_taken(kind, monkeypatch):
    asked = with_default(configs(12))
    times = {pairs(c): 100.0 + i for i, c in enumerate(asked)}
    bad = pairs(asked[5])
    times[bad] = 50.0
    _, _, won = judged(Simulation("h800", {bad: kind}, times=times), asked, monkeypatch)
    assert won.trial is not None and pairs(won.trial.config) != bad
    found = {pairs(t.config): t for t in won.refuted}
    assert found.keys() == ({bad} if kind in ("wrong elsewhere", "sometimes wrong", "other bits") else set())
    for trial in found.values():
        assert trial.status == WRONG and trial.microseconds == 0.0
        assert "planted" in trial.reason or "not the same" in trial.reason


def test_the_winner_names_what_it_has_passed(monkeypatch):
    asked = with_default(configs(6))
    times = {pairs(c): 100.0 for c in asked} | {pairs(asked[3]): 60.0}
    judge, (first, *_), won = judged(Simulation("h800", times=times), asked, monkeypatch)
    assert pairs(first.config) == pairs(won.trial.config) == pairs(asked[3]) and not won.refuted
    assert won.checks == (
        "reference",
        "guard zones",
        "8 held-out shapes, 3 seeds each",
        "the same bits in 1000 runs",
        "faster than the default",
    )
    turns = won.trial.facts["in_turns"]
    assert won.trial.microseconds == pytest.approx(60, rel=0.02) and turns["default"] == pytest.approx(100, rel=0.02)
    assert won.default_microseconds == turns["default"]
    assert won.trial.microseconds != first.microseconds, "the time is the one in turns"
    kinds = [type(j).__name__ for j in judge._measuring.jobs]
    assert kinds[: len(asked)] == ["Measure"] * len(asked) and kinds[-1] == "Compare"
    assert kinds.count("Verify") == 8 and kinds.count("Race") == 1


def test_the_default_is_kept_unless_something_is_faster_by_more_than_chance(monkeypatch):
    asked = with_default(configs(10))
    times = {pairs(c): 100.0 for c in asked} | {pairs(asked[4]): 98.9}
    _, _, won = judged(Simulation("h800", times=times), asked, monkeypatch)
    assert pairs(won.trial.config) == TASK.config and "faster than the default" not in won.checks


def test_if_everything_fails_the_default_is_taken_if_it_passes_and_nothing_otherwise(monkeypatch):
    asked = with_default(configs(5))
    planted = {pairs(c): "wrong" for c in asked[1:]}
    _, _, won = judged(Simulation("h800", planted), asked, monkeypatch)
    assert pairs(won.trial.config) == TASK.config
    for kind in ("wrong", "nothing", "not a number", "wrong elsewhere", "other bits"):
        everything = {pairs(c): kind for c in asked}
        _, _, won = judged(Simulation("h800", everything), asked, monkeypatch)
        assert won.trial is None and not won.checks, kind
        refuted = everything if kind in ("wrong elsewhere", "other bits") else {}
        assert {pairs(t.config): t.status for t in won.refuted} == dict.fromkeys(refuted, WRONG)


def test_without_a_default_that_works_another_is_taken(monkeypatch):
    asked = with_default(configs(5))
    _, _, won = judged(Simulation("h800", {TASK.config: "wrong elsewhere"}), asked, monkeypatch)
    assert won.trial is not None and pairs(won.trial.config) != TASK.config
    assert "faster than the default" not in won.checks
    assert {pairs(t.config) for t in won.refuted} <= {TASK.config}


def test_what_ends_its_process_when_it_is_looked_at_more_closely_has_failed(monkeypatch):
    asked = with_default(configs(5))
    bad = pairs(asked[2])
    times = {pairs(c): 100.0 for c in asked} | {bad: 50.0}

    def held_out(self, subject, shape, seed):
        self._lost = subject.steps[0].config_pairs == bad
        return ""

    monkeypatch.setattr(SimulatedBench, "held_out", held_out)
    _, _, won = judged(Simulation("h800", times=times), asked, monkeypatch)
    ((config, status, reason),) = ((pairs(t.config), t.status, t.reason) for t in won.refuted)
    assert pairs(won.trial.config) != bad == config and status == FAILED and "illegal memory access" in reason


def test_measuring_processes_are_not_sent_what_only_people_read(monkeypatch):
    judge, _, _ = judged(Simulation("h800"), with_default(configs(3)), monkeypatch)
    assert {s.cubin.ptx for job in judge._measuring.jobs for s in job.subject.steps} == {""}


def test_repeats_are_spent_on_what_is_close_to_the_best(monkeypatch):
    asked = configs(12)
    times = {pairs(c): 100.0 * (1 + i) for i, c in enumerate(asked)}
    with simulated_judge(Simulation("h800", times=times)) as judge:
        judge._measuring = Here(Simulation("h800", times=times))
        first, rest = asked[0], asked[1:]
        (best,) = judge.judge(TASK, [first])
        later = list(judge.judge(TASK, rest))
    assert best.facts["repeats"] == worker.FEW + worker.MANY
    assert all(t.facts["repeats"] == worker.FEW for t in later)


# noise, load, bounds


def test_chance_does_not_choose(monkeypatch):
    """Ten fresh runs, processes that differ by a few parts in a thousand, the ten fastest within half a percent."""
    asked = configs(40)
    times = {pairs(c): 100.0 + 0.05 * i if i < 10 else 110.0 + i for i, c in enumerate(asked)}
    winners = []
    for _ in range(10):
        _, _, won = judged(Simulation("h800", noise=0.01, level=0.003, times=times), asked, monkeypatch)
        winners.append(pairs(won.trial.config))
    assert max(winners.count(w) for w in winners) >= 9
    assert all(times[w] < 101 for w in winners)


def test_load_by_something_else_is_seen(monkeypatch, tmp_path):
    """It comes and goes with one of ten trials."""
    monkeypatch.setattr(worker, "PAUSE", 0.0)
    asked = configs(10)
    for factor in (1.1, 1.3, 3.0):
        simulation = Simulation("h800", load=str(tmp_path / "load"), times=dict.fromkeys(map(pairs, asked), 100.0))
        with simulated_judge(simulation) as judge:
            judge._measuring = Here(simulation)
            for loaded in range(1, 10):
                (tmp_path / "load").write_text("1")
                (before,) = judge.judge(TASK, [asked[0]])
                (tmp_path / "load").write_text(str(factor))
                (during,) = judge.judge(TASK, [asked[loaded]])
                assert "flag" not in before.facts and before.facts["attempts"] == 1
                assert during.facts["attempts"] == worker.ATTEMPTS and "drifted" in during.facts["flag"]
                assert during.facts["drift"] == pytest.approx(factor - 1, abs=0.03 * factor)


def test_a_time_is_taken_again_when_the_load_has_gone(monkeypatch, tmp_path):
    load = tmp_path / "load"
    load.write_text("1")
    (one,) = asked = configs(1)
    simulation = Simulation("h800", load=str(load), times={pairs(one): 100.0})
    with simulated_judge(simulation) as judge:
        judge._measuring = Here(simulation)
        list(judge.judge(TASK, asked))
        load.write_text("2")
        monkeypatch.setattr(worker, "PAUSE", 0.3)
        threading.Timer(0.1, load.write_text, ["1"]).start()
        (found,) = judge.judge(TASK, asked)
    assert found.facts["attempts"] == 2 and "flag" not in found.facts
    assert found.microseconds == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("time", [0.0, -1.0, 1e-9, float("nan"), float("inf"), float("-inf")])
def test_times_that_cannot_be_are_refused(time):
    subject = Subject(TASK.call, (Step("linear", TASK.call.dims, TASK.config),))
    bench = SimulatedBench(Simulation("h800"))
    assert impossible(subject.call, H800, bench, time)
    least = bound(TASK.call, H800)
    assert impossible(subject.call, H800, bench, 0.99 * least)
    assert not impossible(subject.call, H800, bench, 1.01 * least)


def test_times_without_an_end_are_no_measurement(monkeypatch):
    asked = configs(3)
    planted = {pairs(asked[1]): ENDLESS}
    times = {pairs(c): 100.0 for c in asked}
    judge, trials, _ = judged(Simulation("h800", planted, times=times), asked, monkeypatch)
    found = {pairs(t.config): t for t in trials}[pairs(asked[1])]
    assert found.status == FAILED and found.microseconds == 0.0 and "no numbers" in found.reason
    json.dumps([t.to_json() for t in trials], allow_nan=False)
    job = judge._measuring.jobs[1]
    other = judge._measuring.answer(Compare(judge._measuring.jobs[0].subject, job.subject, 2))[0]
    assert other.status == FAILED and "no numbers" in other.reason


def test_a_device_that_is_faster_than_its_profile_moves_the_bound():
    subject = Subject(task(norm(rows=8192)).call, (Step("rms_norm", norm().dims, ()),))
    bench, least = SimulatedBench(Simulation("h800")), bound(subject.call, H800)
    assert impossible(subject.call, H800, bench, 0.9 * least)
    bench.rates = lambda: (2 * H800.bandwidth, 0.0)
    assert not impossible(subject.call, H800, bench, 0.9 * least)


def test_margins_shrink_with_repeats_and_ignore_outliers():
    rng = random.Random(0)
    times = [100 + rng.gauss(0, 1) for _ in range(400)]
    assert margin(times) == pytest.approx(1.96 * 1.2533 / 20, rel=0.25)
    assert margin([*times, 1e6]) == pytest.approx(margin(times), rel=0.05)
    assert margin(times[:100]) > 1.5 * margin(times)
    assert apart(100, 103, (0.1, 0.1)) and not apart(100, 101.9, (0.1, 0.1)) and not apart(100, 103, (3, 3))


def test_the_order_of_those_as_fast_is_that_of_their_knobs():
    def trial(x, time):
        return Trial({"X": x}, OK, time, facts={"margin": 0.1})

    ranked = [trial(5, 100.0), trial(3, 100.5), trial(4, 101.0), trial(1, 103.0)]
    assert [t.config["X"] for t in candidates(ranked)] == [3, 4, 5, 1]
    assert candidates([]) == []


def test_noise_does_not_make_a_slow_one_as_fast_as_the_fastest():
    fast = Trial({"X": 2}, OK, 10.0, facts={"margin": 0.05})
    noisy = Trial({"X": 1}, OK, 14.0, facts={"margin": 5.0})
    assert candidates([fast, noisy]) == [fast, noisy]


def test_the_simulation_has_one_time_a_configuration():
    subject = Subject(TASK.call, (Step("linear", TASK.call.dims, TASK.config),))
    assert microseconds(subject, H800, {}) == microseconds(subject, H800, {}) > bound(TASK.call, H800)
