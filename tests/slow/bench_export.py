"""Export and passes without weights: time, memory and nodes. Writes artifacts/bench/export.json.

    python -m tests.slow.bench_export [--out FILE] [--presets NAME ...] [--rounds N] [--seconds N]

Every case is a fresh process that compiles both programs of a preset; NAME:27 takes a preset with 27 layers.
Once as a build does it, with every pass checked in fp64 on the model's twin, and once without the checks.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from dsv2_compile.bench.process import run
from dsv2_compile.bench.stats import Spread
from tests.slow.figures import ROOT, Budget, arguments, note, save

PRESETS = ("lite", "v2:27", "v2")
AIMS = {"v2_seconds": 150.0, "v2_peak_rss_gb": 2.0, "v2_60_layers_over_27": 2.3}


def child(preset: str, check: bool) -> dict[str, Any]:
    """One case in this process."""
    start = time.perf_counter()
    from dsv2_compile.checkpoint.presets import configure
    from dsv2_compile.compiler import CompileOptions, compile_program
    from dsv2_compile.export import PHASES
    from dsv2_compile.targets import target

    imports = time.perf_counter() - start
    name, _, layers = preset.partition(":")
    config = configure(name, {"layers": int(layers)} if layers else {})
    options = CompileOptions(target("cpu"), config.max_position_embeddings, {}, check)
    out: dict[str, Any] = {"layers": config.num_hidden_layers, "import_seconds": imports, "programs": {}}
    for phase in PHASES:
        start = time.perf_counter()
        program, records = compile_program(config, phase, options)
        seconds = time.perf_counter() - start
        out["programs"][phase] = {
            "seconds": seconds,
            "nodes_exported": records[0].nodes_before,
            "nodes_fused": len(program.graph.nodes),
            "weights": len(program.weights.recipes),
            "passes": [
                {k: r[k] for k in ("name", "matches", "nodes_before", "nodes_after", "claim", "error")}
                for r in map(asdict, records)
            ],
        }
    return out


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cases: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for r in runs:
        cases.setdefault((r["preset"], r["check"]), []).append(r)
    return [
        {
            "preset": preset,
            "check": check,
            "layers": found[0]["layers"],
            "seconds": asdict(Spread.of([r["seconds"] for r in found])),
            "compile_seconds": asdict(Spread.of([_compile(r) for r in found])),
            "peak_rss_gb": max(r["peak_rss_bytes"] for r in found) / 1e9,
        }
        for (preset, check), found in cases.items()
    ]


def _compile(r: dict[str, Any]) -> float:
    return float(sum(p["seconds"] for p in r["programs"].values()))


def aims(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What was aimed at and what came of it, with and without the checks, for the cases that ran."""
    by = {(line["preset"], line["check"]): line for line in lines}
    out: dict[str, Any] = {}
    for check in (False, True):
        found: dict[str, float] = {}
        if whole := by.get(("v2", check)):
            found |= {"v2_seconds": whole["seconds"]["median"], "v2_peak_rss_gb": whole["peak_rss_gb"]}
        if whole and (part := by.get(("v2:27", check))):
            ratio = whole["compile_seconds"]["median"] / part["compile_seconds"]["median"]
            found["v2_60_layers_over_27"] = ratio
        rows = {k: {"aim": AIMS[k], "measured": v, "met": v <= AIMS[k]} for k, v in found.items()}
        out["with checks" if check else "without checks"] = rows
    return out


def main() -> None:
    parser = arguments("export", __doc__)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3600, help="begin no further case after this time")
    parser.add_argument("--case", help="for the script itself")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(child(*json.loads(args.case))))
        return
    budget, runs = Budget(args.seconds), []
    for turn in range(args.rounds):
        for check in (False, True):
            for preset in args.presets:
                if not budget.allows(f"round {turn + 1}: {preset}, check {check}"):
                    continue
                case = json.dumps([preset, check])
                done = run([sys.executable, "-m", "tests.slow.bench_export", "--case", case], cwd=ROOT)
                if done.status:
                    raise SystemExit(done.stderr[-2000:])
                runs.append(
                    {
                        "preset": preset,
                        "check": check,
                        "round": turn + 1,
                        "seconds": done.seconds,
                        "peak_rss_bytes": done.peak_rss_bytes,
                        "peak_private_bytes": done.peak_private_bytes,
                        **json.loads(done.stdout.splitlines()[-1]),
                    }
                )
                note(f"{preset}, check {check}: {done.seconds:.1f} s, {done.peak_rss_bytes / 1e9:.2f} GB")
    lines = summary(runs)
    save(args.out, summary=lines, aims=aims(lines), skipped=budget.skipped, runs=runs)


if __name__ == "__main__":
    main()
