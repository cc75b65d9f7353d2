"""Tuning without a GPU: candidates compiled, checked and ranked a minute, memory, and what a trial costs.

    python -m tests.slow.bench_tune [--out FILE] [--scratch DIR] [--gpu NAME] [--budget 180s]

Writes artifacts/bench/tune.json. `tune` of V2-Lite with an empty cache, from a config.json alone, for the time given;
then again for the same time; then once more for a GPU of the same architecture, whose cubins are in the cache. Memory
is of the parent and, apart from it, of all its processes together.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from dsv2_compile.autotune import lines
from dsv2_compile.checkpoint.presets import configure, published_config
from tests.slow.figures import answer, arguments, cli, note, save

SIBLING = "h200"
PARTIAL = 7


def sweep(model: Path, gpu: str, budget: str, log: Path) -> dict[str, Any]:
    """One run. ``trials``: of it, not of those before."""
    before = len(lines.read(log).objects)
    done = cli("tune", model, "--gpu", gpu, "--budget", budget, "--json", allowed=(0, PARTIAL))
    report = answer(done)
    made = lines.read(log).objects[before:]
    fresh = [t["seconds"] for t in made if not t["facts"].get("cached", False)]
    return {
        "gpu": gpu,
        "seconds": done.seconds,
        "sweep_seconds": report["seconds"],
        "trials": len(made),
        "by_status": report["trials"],
        "reasons": Counter(report["reasons"]).most_common(10),
        "trials_per_minute": round(60 * len(made) / report["seconds"], 1),
        "compiled": len(fresh),
        "processor_seconds_per_compile": {"median": median(fresh), "most": max(fresh)} if fresh else {},
        "records": len(report["records"]),
        "tasks": report["tasks"],
        "unfinished": report["unfinished"],
        "peak_private_bytes": done.peak_private_bytes,
        "peak_rss_bytes": done.peak_rss_bytes,
    }


def main() -> None:
    parser = arguments("tune", __doc__)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--gpu", default="h800")
    parser.add_argument("--budget", default="180s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(published_config(configure("lite", {}), "bfloat16")))
        os.environ["DSV2_CACHE_DIR"] = str(folder / "cache")
        logs = folder / "cache" / "tuning" / "trials"
        runs = {}
        for name, gpu in (("cold", args.gpu), ("again", args.gpu), ("sibling", SIBLING)):
            runs[name] = sweep(model, gpu, args.budget, logs / f"{gpu}.jsonl")
            note(f"{name}: {runs[name]['trials_per_minute']} trials a minute")
        save(args.out, model="lite", budget=args.budget, runs=runs)


if __name__ == "__main__":
    main()
