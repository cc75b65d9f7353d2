"""Predictions against what an H200 measured: rank correlation, default against tuned, winners against the bound.

    python -m tests.slow.bench_tune_rank [--out FILE]

Writes artifacts/tuning/measured.json: the report of artifacts/tuning/trials/h200.jsonl, the log of sweeps of V2-Lite
on that GPU, of the shipped records, and of a prediction of every configuration that was timed, compiled here again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dsv2_compile.autotune import base
from dsv2_compile.autotune.log import TrialLog
from dsv2_compile.autotune.predict import VERSION, bound
from dsv2_compile.autotune.predicted import PredictedJudge
from dsv2_compile.autotune.report.build import report
from dsv2_compile.autotune.report.data import Case
from dsv2_compile.autotune.report.read import read
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.sweep import judge_name
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.backends.cuda.pool import Pool
from dsv2_compile.checkpoint.presets import configure, published_config
from dsv2_compile.pipeline.tune import TuneRequest, tasks_given
from dsv2_compile.progress import silent
from dsv2_compile.targets import target
from tests.slow.figures import ROOT, arguments, note, save

GPU, DEVICE = target("h200"), "measured on NVIDIA H200, CUDA 13.0"
FOLDER = ROOT / "artifacts/tuning"
POSITIONS = 8256
"""Of the sweeps."""


def tasks(folder: Path) -> Sequence[Task]:
    (folder / "config.json").write_text(json.dumps(published_config(configure("lite", {}), "bfloat16")))
    return tasks_given(TuneRequest(str(folder), GPU, max_seq_len=POSITIONS), silent)(base.Base())


def predict(log: TrialLog, task: Task, judge: PredictedJudge) -> None:
    """Every configuration of ``task`` that was timed."""
    timed = {pairs(t.config): t for t in log.of(task, DEVICE) if t.ok}
    for trial in judge.judge(task, [t.config for t in timed.values()]):
        log.add(task, judge_name(judge), trial, bound(task.call, GPU), pairs(trial.config) == task.config)


def told(case: Case) -> dict[str, Any]:
    agreement, winner = case.agreement, case.winner
    assert agreement is not None and winner is not None
    return {
        "kernel": case.key.kernel,
        "what": case.what,
        "where": case.where,
        "configurations": agreement.configs,
        "rank_correlation": agreement.spearman,
        "first_by_prediction_over_fastest": 1 + agreement.regret,
        "predicted_measured": [(p, m) for p, m, _ in agreement.points],
        "recorded": winner.source == "record",
        "microseconds": winner.microseconds,
        "default_over_tuned": winner.gain,
        "share_of_bound": winner.of_bound,
    }


def main() -> None:
    parser = arguments("measured", __doc__)
    parser.set_defaults(out=FOLDER / "measured.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Pool(2) as pool:
        path = Path(shutil.copy(FOLDER / "trials/h200.jsonl", scratch))
        log, judge = TrialLog(path), PredictedJudge(GPU, pool)
        for task in tasks(Path(scratch)):
            predict(log, task, judge)
        found = report(read([path]), base.load([FOLDER / "h200.jsonl"]), [], [GPU.name])
    rows = [told(c) for part in found.parts for c in part.cases if c.agreement]
    for row in rows:
        note(f"{row['kernel']}, {row['what']}, {row['where']}: {row['rank_correlation']}")
    ratios = [r["first_by_prediction_over_fastest"] for r in rows]
    save(
        args.out,
        device=DEVICE,
        model=VERSION,
        configurations=sum(r["configurations"] for r in rows),
        rank_correlation=median(r["rank_correlation"] for r in rows),
        first_by_prediction_over_fastest={"median": median(ratios), "most": max(ratios)},
        calls=rows,
    )


if __name__ == "__main__":
    main()
