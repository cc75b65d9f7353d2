"""Predictions against what an H200 measured: rank correlation, default against tuned, winners against the bound.

    python -m tests.slow.bench_tune_rank [--out FILE]

Writes artifacts/tuning/measured.json from artifacts/tuning/trials/h200.jsonl, the log of sweeps of V2-Lite on that
GPU, and from the shipped records. Every configuration that was timed is compiled and predicted again here.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dsv2_compile.autotune import base
from dsv2_compile.autotune.log import TrialLog
from dsv2_compile.autotune.predict import VERSION
from dsv2_compile.autotune.predicted import PredictedJudge
from dsv2_compile.autotune.record import MEASURED, Record
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.tasks import Task, tasks_of
from dsv2_compile.autotune.trial import Trial
from dsv2_compile.backends.cuda.choice import Choice
from dsv2_compile.backends.cuda.pool import Pool
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.presets import configure, published_config
from dsv2_compile.pipeline.cuda_plan import drafts_of, programs_of
from dsv2_compile.pipeline.cuda_records import configs_of
from dsv2_compile.progress import silent
from dsv2_compile.targets import Target, target
from tests.slow.figures import ROOT, arguments, note, save

GPU, JUDGE = "h200", "measured on NVIDIA H200, CUDA 13.0"
LOG = ROOT / "artifacts/tuning/trials/h200.jsonl"
RECORDS = ROOT / "artifacts/tuning/h200.jsonl"
POSITIONS, BATCH = 8256, 128
"""Of the sweeps."""
FEWEST = 4
"""Times of a call from which a rank correlation says anything."""


def tasks(gpu: Target) -> list[Task]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(published_config(configure("lite", {}), "bfloat16")))
        config = Checkpoint.settings(folder, None, silent).config
    compiled = programs_of(config, gpu, POSITIONS, {}, silent, check=False)
    drafts = drafts_of(compiled, gpu, "bf16", BATCH, POSITIONS, silent, Choice(configs_of(base.Base())))
    return tasks_of(drafts.values(), gpu)


def ranks(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Those that are equal share the mean of their ranks."""
    order = np.asarray(values)
    return np.array([(np.sum(order < v) + np.sum(order <= v) - 1) / 2 for v in order])


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation of the ranks; None where all are the same."""
    x, y = ranks(a), ranks(b)
    if not (np.ptp(x) and np.ptp(y)):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def compare(task: Task, measured: Sequence[Trial], judge: PredictedJudge) -> dict[str, Any]:
    times = {pairs(t.config): t.microseconds for t in measured if t.ok}
    predicted = {pairs(t.config): t.microseconds for t in judge.judge(task, [dict(c) for c in times]) if t.ok}
    both = sorted(times.keys() & predicted.keys())
    row: dict[str, Any] = {
        "kernel": task.call.kernel,
        "what": task.what,
        "sizes": dict(task.call.sizes),
        "measured": [times[c] for c in both],
        "predicted": [predicted[c] for c in both],
    }
    if len(both) >= FEWEST:
        row["rank_correlation"] = spearman(row["measured"], row["predicted"])
        best, chosen = min(both, key=lambda c: times[c]), min(both, key=lambda c: predicted[c])
        row["first_by_prediction_over_fastest"] = times[chosen] / times[best]
    return row


def tuned(record: Record) -> dict[str, Any]:
    return {
        "kernel": record.key.kernel,
        "sizes": dict(record.key.sizes),
        "config": dict(record.config),
        "microseconds": record.microseconds,
        "default_over_tuned": record.default_microseconds / record.microseconds,
        "share_of_bound": record.bound / record.microseconds,
        "checks": list(record.checks),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [r for r in rows if r.get("rank_correlation") is not None]
    ratios = [m / p for r in rows for m, p in zip(r["measured"], r["predicted"], strict=True)]
    by_kernel = defaultdict(list)
    for r in found:
        by_kernel[r["kernel"]].append(r["rank_correlation"])
    return {
        "trials": len(ratios),
        "calls": len(found),
        "rank_correlation": {"median": median(r["rank_correlation"] for r in found)}
        | {k: median(v) for k, v in by_kernel.items()},
        "first_by_prediction_over_fastest": {
            "median": median(r["first_by_prediction_over_fastest"] for r in found),
            "most": max(r["first_by_prediction_over_fastest"] for r in found),
        },
        "measured_over_predicted": dict(zip(("p10", "p50", "p90"), np.percentile(ratios, [10, 50, 90]), strict=True)),
    }


def main() -> None:
    parser = arguments("measured", __doc__)
    parser.set_defaults(out=ROOT / "artifacts/tuning/measured.json")
    args = parser.parse_args()
    gpu, log, rows = target(GPU), TrialLog(LOG), []
    with Pool(2) as pool:
        judge = PredictedJudge(gpu, pool)
        for task in tasks(gpu):
            if measured := log.of(task, JUDGE):
                rows.append(compare(task, measured, judge))
                note(f"{task.call.kernel}, {task.what}: {rows[-1].get('rank_correlation')}")
    records = [r for r in base.load([RECORDS]).records.values() if r.provenance == MEASURED]
    save(
        args.out,
        device=JUDGE,
        model=VERSION,
        summary=summary(rows),
        calls=rows,
        records=[tuned(r) for r in records],
    )


if __name__ == "__main__":
    main()
