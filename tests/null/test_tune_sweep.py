"""The sweep over a judge that knows every answer: what is tried, logged, recorded, and gone on with."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from dsv2_compile.autotune import base, lines
from dsv2_compile.autotune.base import Base
from dsv2_compile.autotune.log import TrialLog
from dsv2_compile.autotune.search import Exhaustive, Sampler, pairs, search
from dsv2_compile.autotune.sweep import Effort, Sweep
from dsv2_compile.autotune.trial import OK, WRONG, Confirmed
from dsv2_compile.kernels.gpu.kernel import KERNELS
from tests.tuning import H800, Judge, linear, norm, task

EFFORT = Effort(trials=40, seeds=6)


def warps(config):
    """Best at 4 warps."""
    return 1.0 + abs(math.log2(config["num_warps"]) - 2)


def sweep(tmp_path, tasks, judge, effort=EFFORT, deadline=float("inf"), told=lambda tally: None):
    log = TrialLog(tmp_path / "log.jsonl")
    return Sweep(tasks, H800, judge, log, tmp_path / "records.jsonl", effort, None, deadline, told)


def test_a_small_space_is_tried_whole_and_once(tmp_path):
    judge = Judge(warps)
    (record,) = sweep(tmp_path, [task(norm())], judge).run()
    assert dict(record.config)["num_warps"] == 4 and record.trials == 5
    assert len(judge.seen) == len(set(judge.seen)) == len(KERNELS["rms_norm"].space["num_warps"])
    assert record.microseconds == 1.0 and record.default_microseconds >= 1.0


def test_a_large_space_is_sampled_within_its_limit_and_starts_with_the_default(tmp_path):
    judge = Judge(lambda c: c["BLOCK_K"] / 32 + c["num_warps"])
    one = task(linear())
    (record,) = sweep(tmp_path, [one], judge).run()
    assert judge.seen[0] == (one.key, one.config)
    assert len(judge.seen) == len(set(judge.seen)) == record.trials == EFFORT.trials
    assert record.microseconds == min(judge.time(dict(c)) for _, c in judge.seen)


def test_trials_are_on_disk_before_the_next_one(tmp_path):
    counts = []
    judge = Judge(warps, on_trial=lambda: counts.append(len(lines.read(tmp_path / "log.jsonl").objects)))
    sweep(tmp_path, [task(norm()), task(norm(rows=64))], judge).run()
    assert counts == list(range(10))


@pytest.mark.parametrize("call", [norm(), linear()])
def test_a_sweep_goes_on_from_the_log(tmp_path, call):
    class Cut(Exception):
        pass

    def cut():
        if len(first.seen) == 3:
            raise Cut

    first = Judge(lambda c: 1.0 + c["num_warps"], on_trial=cut)
    with pytest.raises(Cut):
        sweep(tmp_path, [task(call)], first).run()
    again = Judge(first.time)
    run = sweep(tmp_path, [task(call)], again)
    assert run.tally.found == 3
    (record,) = run.run()
    assert not set(first.seen) & set(again.seen)
    assert record.trials == len({*first.seen, *again.seen})


def test_trials_at_other_sizes_of_the_same_key_are_not_gone_on_with(tmp_path):
    """96 and 128 rows are one key, for records; a time of the former says nothing of the latter."""
    small, large = task(norm(rows=96)), task(norm(rows=128))
    assert small.key == large.key
    sweep(tmp_path, [small], Judge(warps)).run()
    again = Judge(lambda c: 2 * warps(c))
    (record,) = sweep(tmp_path, [large], again).run()
    assert len(again.seen) == 5 and record.microseconds == 2.0


def test_trials_of_configurations_that_meant_something_else_are_made_again(tmp_path, monkeypatch):
    one = task(norm())
    sweep(tmp_path, [one], Judge(warps)).run()
    before = KERNELS["rms_norm"]
    changed = lambda dims, config: {**before.constants(dims, config), "MORE": 1}
    monkeypatch.setitem(KERNELS, "rms_norm", replace(before, constants=changed))
    again = Judge(warps)
    made = sweep(tmp_path, [one], again)
    made.run()
    assert made._log.stale == 5 and len(again.seen) == 5


def test_what_is_refuted_stays_refuted(tmp_path):
    class Careful(Judge):
        confirmed = 0

        def confirm(self, task, ranked, default):
            self.confirmed += 1
            bad = [replace(t, status=WRONG, reason="seen closely") for t in ranked if t.microseconds < 2.0]
            return Confirmed(next((t for t in ranked if t.microseconds >= 2.0), None), ("some",), tuple(bad))

    (record,) = sweep(tmp_path, [task(norm())], Careful(warps)).run()
    assert record.microseconds == 2.0
    found = TrialLog(tmp_path / "log.jsonl").of(task(norm()), sweep(tmp_path, [task(norm())], Judge(warps))._name)
    assert {t.status for t in found if dict(t.config)["num_warps"] == 4} == {OK, WRONG}
    (again,) = sweep(tmp_path, [task(norm())], Judge(warps)).run()
    assert again.microseconds == 2.0


def test_a_known_configuration_may_lie_outside_of_the_space(tmp_path):
    """As defaults do, of narrow or single rows."""
    one = task(linear(rows=2))
    known = Base()
    outside = {**dict(one.config), "BLOCK_N": 2, "SPLIT_K": 15}
    known.worth_trying = lambda call, target: [outside]
    judge = Judge(lambda c: 1.0 + c["BLOCK_N"])
    log = TrialLog(tmp_path / "log.jsonl")
    (record,) = Sweep([one], H800, judge, log, tmp_path / "records.jsonl", EFFORT, known).run()
    assert (one.key, pairs(outside)) in judge.seen and record.trials == EFFORT.trials


def test_trials_of_another_judge_are_not_gone_on_with(tmp_path):
    sweep(tmp_path, [task(norm())], Judge(warps)).run()
    other = Judge(lambda c: 9.0 - warps(c))
    other.device, other.provenance = "another", "measured"
    (record,) = sweep(tmp_path, [task(norm())], other).run()
    assert len(other.seen) == 5 and record.device == "another"
    assert dict(record.config)["num_warps"] in (1, 16)


def test_every_task_has_a_winner_when_time_is_short(tmp_path):
    """Round by round: a long search of one does not starve the others."""
    tasks = [task(linear()), task(linear(rows=128)), task(norm())]
    judge = Judge(lambda c: 1.0 + c["num_warps"])
    run = sweep(tmp_path, tasks, judge, deadline=float("inf"))
    stop = iter(range(10**6))

    def told(tally):
        if next(stop) == 20:
            run._deadline = time.monotonic() - 1

    run._told = told
    records = run.run()
    assert {r.key for r in records} == {t.key for t in tasks}
    assert 0 < run.tally.tasks - run.tally.finished <= 2


def test_nothing_usable_gives_no_record(tmp_path):
    run = sweep(tmp_path, [task(norm())], Judge(lambda c: None))
    assert run.run() == []
    assert run.tally.trials == {"refused": 5} and run.tally.reasons == {"told so": 5}
    assert base.load([tmp_path / "records.jsonl"]).records == {}


def test_damaged_lines_of_the_log_are_counted_and_tried_again(tmp_path):
    sweep(tmp_path, [task(norm())], Judge(warps)).run()
    path = tmp_path / "log.jsonl"
    data = bytearray(path.read_bytes())
    data[data.index(b'"microseconds":') + 16] ^= 1
    path.write_bytes(data)
    judge = Judge(warps)
    run = sweep(tmp_path, [task(norm())], judge)
    run.run()
    assert run._log.damaged == 1 and len(judge.seen) == 1


def test_the_sampler_gives_up_on_a_space_with_nothing_new():
    space = {"a": (1, 2), "b": (1, 2, 3)}
    found = Sampler(space, [], limit=50, seed=0)
    asked = []
    while batch := found.ask(4):
        asked += batch
        for config in batch:
            found.tell(config, float(config["a"]))
    assert len({pairs(c) for c in asked}) == len(asked) == 6


def test_a_sampler_that_goes_on_knows_what_was_tried():
    """It finds new points wherever it was stopped, and they are as good as without the stop."""
    space = {knob: tuple(range(8)) for knob in "abcd"}
    time_of = lambda c: 1.0 + sum((v - 2) ** 2 for v in c.values())
    tried: dict[object, float] = {}
    for _ in range(10):
        sampler = Sampler(space, [{"a": 7, "b": 7, "c": 7, "d": 7}], limit=200, seed=3)
        for key, value in tried.items():
            sampler.tell(dict(key), value)
        batch = sampler.ask(20)
        assert len(batch) == 20 and not {pairs(c) for c in batch} & tried.keys()
        tried |= {pairs(c): time_of(c) for c in batch}
    assert Sampler(space, [], limit=200, seed=3).most == 200 == len(tried)
    assert min(tried.values()) < 4.0  # 1 % of the points


def test_what_is_not_possible_is_not_tried():
    space = {"a": tuple(range(40)), "b": tuple(range(40))}
    whole = search(space, [], 1700, 0)
    assert isinstance(whole, Exhaustive) and whole.most == 1600
    few = search(space, [], 500, 0, lambda c: c["a"] < 10)
    assert isinstance(few, Exhaustive) and few.most == 400
    sampled = search(space, [], 100, 0, lambda c: c["a"] < 10)
    assert isinstance(sampled, Sampler)
    assert all(c["a"] < 10 for c in sampled.ask(30))


def test_a_winner_is_confirmed_when_another_is_faster_and_at_the_end(tmp_path):
    class Counting(Judge):
        asked = 0

        def confirm(self, task, ranked, default):
            self.asked += 1
            return super().confirm(task, ranked, default)

    slower = iter(range(1, 100))
    judge = Counting(lambda config: float(next(slower)))
    (record,) = sweep(tmp_path, [task(linear())], judge).run()
    assert judge.asked == 2 and record.microseconds == 1.0 and record.trials == EFFORT.trials
    faster = iter(range(100, 0, -1))
    judge = Counting(lambda config: float(next(faster)))
    (record,) = sweep(tmp_path / "other", [task(linear())], judge).run()
    assert judge.asked == EFFORT.trials // 8 and record.microseconds == 100.0 + 1 - EFFORT.trials


def test_what_is_confirmed_when_the_time_is_up_is_on_record(tmp_path):
    """One batch of each, those first that take longest at their bound; then it is too late."""
    tasks = [task(linear(rows)) for rows in (1, 4096, 64)]
    judge = Judge(lambda c: c["BLOCK_K"] / 32 + c["num_warps"])
    found = sweep(tmp_path, tasks, judge)
    found._late = lambda: len(judge.seen) >= 8 * len(tasks)
    assert {r.key for r in found.run()} == {t.key for t in tasks}
    assert [key for key, _ in judge.seen[::8]] == [tasks[i].key for i in (1, 2, 0)]
    assert len(base.load([tmp_path / "records.jsonl"]).records) == 3 and found.tally.finished == 0


def test_the_bound_is_of_the_inputs_that_were_timed(tmp_path):
    class Timed(Judge):
        def judge(self, task, configs):
            for trial in super().judge(task, configs):
                yield replace(trial, facts={"bound": 0.25})

    (record,) = sweep(tmp_path, [task(norm())], Timed(warps)).run()
    assert record.bound == 0.25
    assert {line["bound"] for line in lines.read(tmp_path / "log.jsonl").objects} == {0.25}


def test_a_winner_that_is_refuted_later_is_not_on_record(tmp_path):
    class Careful(Judge):
        """The second look finds everything wrong."""

        asked = 0

        def confirm(self, task, ranked, default):
            self.asked += 1
            if self.asked == 1:
                return super().confirm(task, ranked, default)
            return Confirmed(None, refuted=tuple(replace(t, status=WRONG, reason="a race") for t in ranked))

    faster = iter(range(100, 0, -1))
    judge = Careful(lambda config: float(next(faster)))
    assert sweep(tmp_path, [task(linear())], judge).run() == [] and judge.asked > 1
    assert not base.load([tmp_path / "records.jsonl"]).records


def test_a_sweep_that_is_interrupted_records_what_was_confirmed(tmp_path):
    def cut():
        if len(judge.seen) == 12:
            raise KeyboardInterrupt

    judge = Judge(lambda c: c["BLOCK_K"] / 32 + c["num_warps"], on_trial=cut)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, [task(linear())], judge).run()
    (record,) = base.load([tmp_path / "records.jsonl"]).records.values()
    assert record.microseconds == min(judge.time(dict(c)) for _, c in judge.seen[:8])


def test_what_is_refuted_leads_the_search_no_more():
    space = {"a": tuple(range(12)), "b": tuple(range(12))}
    how = Sampler(space, [], 60, seed=0)
    for config in how.ask(20):
        how.tell(config, 10.0 + config["a"])
    bad = how.ask(1)[0]
    how.tell(bad, 0.5)
    assert how._study.best_value == 0.5
    left = how.ask(2)
    how.tell(bad, None)
    assert how._study.best_value >= 10.0 and bad not in how.ask(40)
    for config in left:
        how.tell(config, 1.0)
    assert how._study.best_value == 1.0
