"""Builds of growing size: memory, speed and the estimate. Writes artifacts/bench/build.json.

    python -m tests.slow.bench_build [--out FILE] [--scratch DIR] [--cases JSON ...] [--seconds N]

Each case is a random checkpoint of the Lite version with other numbers of layers and experts, built by the
command line in a process of its own: `synth`, `build --dry-run`, `build`, `inspect`. The scratch directory
needs three bytes for every two of the largest engine. Private memory is sampled; the peak resident set
counts the pages of the checkpoint that the build has mapped.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dsv2_compile.bench.stats import Spread
from tests.slow.figures import Budget, answer, arguments, cli, note, save, settings

CASES = ({"layers": 2, "experts": 80}, {"layers": 4}, {"layers": 8})
"""Engines of 5, 9 and 18 GB of float32; one layer of experts is 2.2 GB."""
HELP_RUNS = 5


def case(preset: str, overrides: dict[str, int], folder: Path) -> dict[str, Any]:
    """Synthesise, plan, build and inspect one model, and remove it."""
    checkpoint, engine = folder / "checkpoint", folder / "engine"
    made = cli("synth", preset, "-o", checkpoint, *settings(overrides), "--json")
    written = answer(made)
    plan = cli("build", checkpoint, "--cpu", "-o", engine, "--dry-run", "--json")
    estimate = answer(plan)["plan"]["estimate"]
    built = cli("build", checkpoint, "--cpu", "-o", engine, "--json")
    report = answer(built)
    inspected = cli("inspect", engine, "--json")
    largest = estimate["largest_weight_bytes"]
    limit = 3 * largest + 1e9
    out = {
        "preset": preset,
        "overrides": overrides,
        "synth": {
            "bytes": written["bytes"],
            "parameters": written["parameters"],
            "seconds": made.seconds,
            "mb_per_second": written["bytes"] / made.seconds / 1e6,
            "peak_rss_bytes": made.peak_rss_bytes,
        },
        "dry_run": {"seconds": plan.seconds, "peak_private_bytes": plan.peak_private_bytes},
        "build": {
            "engine_bytes": report["bytes"],
            "status": report["engine_status"],
            "seconds": built.seconds,
            "mb_per_second": report["bytes"] / built.seconds / 1e6,
            "largest_weight_bytes": largest,
            "peak_private_bytes": built.peak_private_bytes,
            "peak_rss_bytes": built.peak_rss_bytes,
        },
        "estimate": estimate,
        "measured_over_estimate": {
            "memory": built.peak_private_bytes / estimate["peak_memory_bytes"],
            "seconds": built.seconds / estimate["seconds"],
            "disk": report["bytes"] / estimate["disk_bytes"],
        },
        "aim": {
            "peak_private_bytes": limit,
            "measured": built.peak_private_bytes,
            "met": built.peak_private_bytes <= limit,
        },
        "inspect": {"seconds": inspected.seconds, "peak_rss_bytes": inspected.peak_rss_bytes},
    }
    shutil.rmtree(checkpoint)
    shutil.rmtree(engine)
    return out


def main() -> None:
    parser = arguments("build", __doc__)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--cases", type=json.loads, nargs="+", default=CASES, help='as {"layers": 2}')
    parser.add_argument("--seconds", type=float, default=3600, help="begin no further case after this time")
    args = parser.parse_args()
    budget, cases = Budget(args.seconds), []
    helped = [cli("--help").seconds for _ in range(HELP_RUNS)]
    for overrides in args.cases:
        if not budget.allows(f"case {overrides}"):
            continue
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            cases.append(case(args.preset, overrides, Path(folder)))
        b = cases[-1]["build"]
        note(f"{overrides}: {b['engine_bytes'] / 1e9:.2f} GB in {b['seconds']:.0f} s")
    help_figures = {"runs": helped, "median_seconds": Spread.of(helped).median}
    save(args.out, help=help_figures, cases=cases, skipped=budget.skipped)


if __name__ == "__main__":
    main()
