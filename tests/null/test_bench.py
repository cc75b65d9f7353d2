"""The benchmark: what it runs, what it counts, and that engines and peers run the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dsv2_compile.bench import bandwidth as bandwidth_module
from dsv2_compile.bench import bench_engine, compare, comparison, machine
from dsv2_compile.bench import measure as measure_module
from dsv2_compile.bench.bandwidth import PASSES, Bandwidth
from dsv2_compile.bench.engine import EngineSubject, traffic
from dsv2_compile.bench.measure import WARM_STEPS, Workload, measure
from dsv2_compile.bench.process import Finished
from dsv2_compile.bench.stats import Spread
from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import Engine
from tests import toy_engine


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(bandwidth_module, "BYTES", 1 << 20)
    monkeypatch.setattr(measure_module, "Bandwidth", lambda threads: Bandwidth(threads, 1 << 20))


def source():
    """The toy's, without the token that means NaN."""
    made = toy_engine.ToySource()
    made.tensors["emb"] = made.tensors["emb"].nan_to_num(0.5)
    return made


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "toy"
    toy_engine.build(path, source=source())
    return path


class Script:
    """A subject that notes its calls. Time passes only in them: prefill 1 ms a token, decode 4 ms, filling 1 s."""

    vocab_size = 50

    def __init__(self, monkeypatch):
        self.calls, self.now = [], 0.0
        monkeypatch.setattr(measure_module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(measure_module.time, "monotonic", lambda: self.now)
        rates = iter(range(10, 10_000, 10))
        fake = SimpleNamespace(gbps=lambda: float(next(rates)), close=lambda: None, method="fake")
        monkeypatch.setattr(measure_module, "Bandwidth", lambda threads: fake)

    def _note(self, kind, tokens, seconds):
        self.calls.append((kind, tokens.copy()))
        self.now += seconds
        return tokens.reshape(len(tokens), -1)[:, 0]

    def prefill(self, tokens):
        return self._note("prefill", tokens, 1e-3 * tokens.size)

    def at(self, cached):
        self._note("at", np.full((1, 1), cached), 1.0)

    def decode(self, tokens):
        return self._note("decode", tokens, 4e-3)


def test_spread():
    assert Spread.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(3.0, 1.4, 4.6, 1.0, 5.0, 5)
    with pytest.raises(ValueError, match="no measurements"):
        Spread.of([])


def test_measure_times_what_it_says(monkeypatch):
    subject = Script(monkeypatch)
    work = Workload((8, 4), (20, 10), batch=2, decode_steps=5, repeats=3)
    found = measure(subject, work)
    kinds = [kind for kind, _ in subject.calls]
    assert kinds == ["prefill"] * 8 + (["at"] + ["decode"] * (WARM_STEPS + 5)) * 2
    assert [t.shape for _, t in subject.calls[:8]] == [(2, 8)] * 4 + [(2, 4)] * 4
    assert [(p.tokens, p.ms.samples) for p in found.prefill] == [(8, 3), (4, 3)]
    assert [p.ms.median for p in found.prefill] == pytest.approx([16.0, 8.0])
    assert [p.tokens_per_second for p in found.prefill] == pytest.approx([1000.0, 1000.0])
    assert [(d.context, d.ms.samples) for d in found.decode] == [(10, 5), (20, 5)]
    assert [d.ms.median for d in found.decode] == pytest.approx([4.0, 4.0])
    assert [d.tokens_per_second for d in found.decode] == pytest.approx([500.0, 500.0])
    assert [d.bandwidth_gbps for d in found.decode] == [35.0, 45.0], "measured before and after the point"
    assert found.bandwidth_gbps.samples == 5 and found.skipped == ()


def test_decode_begins_where_it_says_with_tokens_of_the_vocabulary(monkeypatch):
    subject = Script(monkeypatch)
    found = measure(subject, Workload((6,), (5, 12), batch=3, decode_steps=4))
    assert [t.item() for kind, t in subject.calls if kind == "at"] == [5, 12]
    steps = np.stack([t for kind, t in subject.calls if kind == "decode"])
    assert steps.shape == (2 * (WARM_STEPS + 4), 3) and ((steps >= 0) & (steps < 50)).all()
    assert np.unique(steps).size > 10 and found.top1 == tuple(subject.calls[0][1][:, 0])


def test_past_the_deadline_nothing_is_begun(monkeypatch):
    subject = Script(monkeypatch)
    found = measure(subject, Workload((4,), (10, 20, 30), seconds=1.5))
    assert [d.context for d in found.decode] == [10, 20]
    assert found.skipped == ("decode at 30",)


def test_a_late_prefill_still_has_one_sample(monkeypatch):
    found = measure(Script(monkeypatch), Workload((4, 5), (10,), seconds=0.003, repeats=9))
    assert [(p.tokens, p.ms.samples) for p in found.prefill] == [(4, 1)]
    assert found.skipped == ("prefill 5", "decode at 10")


def test_workload_limits():
    work = Workload((100,), (80,), decode_steps=30)
    assert work.need == work.positions == 80 + WARM_STEPS + 30
    assert Workload((200,), (80,), capacity=4096).positions == 4096
    for bad in ({"contexts": (0,)}, {"batch": 0}, {"prompt_lengths": (), "contexts": ()}, {"repeats": 0}):
        with pytest.raises(UsageError):
            Workload(**bad)
    with pytest.raises(UsageError, match="113 are needed"):
        Workload((100,), (80,), decode_steps=30, capacity=112)


def test_bandwidth_is_bytes_over_time(monkeypatch):
    """On a clock where a pass takes half a second."""
    clock = iter(i * 0.5 for i in range(100))
    monkeypatch.setattr(bandwidth_module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(bandwidth_module.time, "sleep", lambda seconds: None)
    read = []
    monkeypatch.setattr(bandwidth_module.np, "max", lambda part: read.append(part.size))
    b = Bandwidth(3, 4 << 20)
    read.clear()
    assert b.gbps() == pytest.approx((4 << 20) / 0.5 / 1e9)
    assert sum(read) == PASSES << 20 and len(read) == 3 * PASSES
    b.close()


def test_engine_subject_is_where_it_says(toy):
    """However often it has been elsewhere; a prompt then starts over, as the oracle computes it."""
    made = source()
    tokens = np.random.default_rng(0).integers(14, toy_engine.VOCAB, (2, 60))
    with Engine.load(toy, threads=1) as engine, engine.session(2, 100) as session:
        subject = EngineSubject(engine.config, session)
        for length in (20, 40, 40, 10, 55):
            subject.at(length)
            assert [session.length(s) for s in (0, 1)] == [length, length]
            subject.decode(tokens[:, length])
            assert [session.length(s) for s in (0, 1)] == [length + 1, length + 1]
        assert subject.prefill(tokens[:, :7]).tolist() == [
            toy_engine.oracle(made, list(row[:7])).argmax() for row in tokens
        ]


def test_bench_engine(toy):
    report = bench_engine(toy, (5, 600), (30, 700), batch=2, decode_steps=4, threads=1, repeats=2, capacity=900)
    m = report.measurements
    assert [p.tokens for p in m.prefill] == [5, 600] and [d.context for d in m.decode] == [30, 700]
    assert all(p.ms.median > 0 for p in [*m.prefill, *m.decode]) and len(m.top1) == 2
    assert report.load_seconds > 0 and report.peak_rss_bytes > report.private_bytes > 1 << 20
    assert report.machine == machine() and report.traffic == ()
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["workload"]["capacity"] == 900


def test_bench_engine_refuses_more_than_the_engine_holds(toy):
    with pytest.raises(UsageError, match="max_tokens"):
        bench_engine(toy, (5,), (toy_engine.MAX_SEQ,), threads=1)
    with pytest.raises(UsageError, match="max_batch"):
        bench_engine(toy, (5,), (5,), batch=toy_engine.MAX_BATCH + 1, threads=1)


def cost_table(path, batch=1, context=2048):
    operators = [
        {"op": "linear", "calls": 3, "bytes": 9_000_000, "flops": 1},
        {"op": "x", "calls": 1, "bytes": 1_000_000, "flops": 1},
    ]
    table = {"sizes": {"batch": batch, "tokens": 1, "context": context}, "operators": operators}
    (path / "programs.json").write_text(json.dumps({"decode": table}))


def traffic_of(path, form="absorbed", batch=1):
    engine = SimpleNamespace(
        manifest=SimpleNamespace(programs={"decode": SimpleNamespace(mla_form=form)}), config=toy_engine.CONFIG
    )
    points = [SimpleNamespace(context=c, ms=SimpleNamespace(median=2.0), bandwidth_gbps=20.0) for c in (2038, 100)]
    return traffic(path, engine, SimpleNamespace(decode=points), Workload((5,), (100, 2038), batch, 20))


def test_share_of_bandwidth(tmp_path):
    """10 MB in 2 ms is 5 GB/s of 20. Fewer positions: 3 layers of 12 values of 4 bytes less for each."""
    cost_table(tmp_path)
    near, far = traffic_of(tmp_path)
    assert (near.bytes_per_step, near.gbps, near.share_of_bandwidth) == (10_000_000, 5.0, 0.25)
    assert far.bytes_per_step == 10_000_000 - 3 * 12 * 4 * (2048 - 110)


def test_no_share_where_the_table_does_not_hold(tmp_path):
    assert traffic_of(tmp_path) == ()
    cost_table(tmp_path)
    assert traffic_of(tmp_path, batch=2) == () and traffic_of(tmp_path, form="expanded") == ()


def finished(status=0, stdout="", stderr="", timed_out=False):
    return Finished(status, 1.0, 2, 3, stdout, stderr, timed_out)


def report_of(prefill_ms, decode_ms, top1):
    measurements = {
        "prefill": [{"tokens": 4, "ms": {"median": prefill_ms}}],
        "decode": [{"context": 6, "ms": {"median": decode_ms}}],
        "top1": top1,
    }
    return finished(stdout=json.dumps({"measurements": measurements}))


def compared(monkeypatch, answers, subjects, rounds, **options):
    """The comparison if its processes end with ``answers``, and what they were asked."""
    asked = []

    def run(command, stdin, timeout, env):
        asked.append(json.loads(stdin))
        return answers[len(asked) - 1]

    monkeypatch.setattr(comparison, "run", run)
    work = Workload((4,), (6,), decode_steps=2, repeats=1)
    return compare("E", "C", work, subjects, rounds, **options), asked


def test_compare_goes_in_turn_and_sums_up(monkeypatch):
    answers = [
        report_of(10.0, 1.0, [7]),
        report_of(20.0, 3.0, [7]),
        report_of(14.0, 1.0, [7]),
        report_of(40.0, 5.0, [7]),
    ]
    found, asked = compared(monkeypatch, answers, ("engine", "eager"), 2)
    assert [(r.subject, r.round) for r in found.runs] == [("engine", 1), ("eager", 1), ("engine", 2), ("eager", 2)]
    assert [(a["subject"], a["path"][-2:]) for a in asked] == [("engine", "/E"), ("eager", "/C")] * 2
    lines = {(line.what, line.subject): (line.ms.median, line.times_engine) for line in found.summary}
    assert lines == {
        ("prefill 4", "engine"): (12.0, 1.0),
        ("prefill 4", "eager"): (30.0, 2.5),
        ("decode at 6", "engine"): (1.0, 1.0),
        ("decode at 6", "eager"): (4.0, 4.0),
    }
    assert found.same_top1 is True
    json.dumps(found.to_json(), allow_nan=False)


def test_compare_records_failures_and_disagreement(monkeypatch):
    answers = [
        report_of(1.0, 1.0, [7]),
        report_of(1.0, 1.0, [8]),
        finished(-9),
        finished(-9, timed_out=True),
        finished(1, stderr="Traceback\nOSError: gone\n"),
    ]
    found, _ = compared(monkeypatch, answers, ("engine", "eager", "compile", "compile", "eager"), 1, timeout=5)
    failures = [r.failure for r in found.runs]
    assert failures == [None, None, "ended by signal 9", "took longer than 5 s", "OSError: gone"]
    assert found.same_top1 is False
    assert {line.subject for line in found.summary} == {"engine", "eager"}


def test_compare_for_real(toy, tmp_path):
    work = Workload((4,), (6,), decode_steps=2, repeats=1)
    found = compare(toy, tmp_path, work, ("engine",), 1)
    (ran,) = found.runs
    assert ran.failure is None and ran.report["subject"] == "engine" and ran.peak_rss_bytes > 10 << 20
    assert len(ran.report["measurements"]["top1"]) == 1
    with pytest.raises(UsageError, match="nothing called"):
        compare(toy, tmp_path, work, ("vllm",))


def test_no_torch_is_imported():
    code = "import sys, dsv2_compile.bench; print([m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
