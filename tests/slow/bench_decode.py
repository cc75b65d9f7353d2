"""Speed of an engine beside transformers, eager and compiled. Writes artifacts/bench/decode.json.

    python -m tests.slow.bench_decode [--out FILE] [--scratch DIR] [--set NAME=N ...] [--rounds N] [--timeout S]

The model is DeepSeek-V2-Lite with all its 27 layers and every size but one: 8 routed experts instead of 64,
so that float32 weights (13 GB) and a peer's copy of them fit in 24 GB. A token still goes through 6 experts
in every layer, so decoding reads exactly the bytes that the published model reads. Prompts do not compare
that way: more tokens meet at each expert.

Engine and peers run in turn, each in a process of its own with the same threads and tokens, in float32. A step
is measured over cached random numbers: computing a prompt of 8K first would take most of an
hour. Then the engine alone with room for 8K and for 128K positions: what is not cached should cost nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dsv2_compile.bench import Comparison, Workload, compare
from dsv2_compile.bench.comparison import SUBJECTS
from dsv2_compile.bench.stats import Spread
from tests.slow.figures import Budget, answer, arguments, cli, note, save

AIM_SHARE = 0.70
CAPACITIES = (8448, 131072)


def settled(comparison: Comparison) -> dict[str, Any]:
    """Share of memory bandwidth by context, over the runs of the engine; the aim is for the shortest."""
    shares: dict[int, list[float]] = {}
    for r in comparison.runs:
        for point in (r.report or {}).get("traffic", ()):
            shares.setdefault(point["context"], []).append(point["share_of_bandwidth"])
    found = {context: Spread.of(values) for context, values in sorted(shares.items())}
    if not found:
        return {}
    first = next(iter(found))
    return {
        "share_of_bandwidth": {str(context): asdict(spread) for context, spread in found.items()},
        "aim": {"context": first, "share": AIM_SHARE, "met": found[first].median >= AIM_SHARE},
    }


def by_capacity(
    engine: Path, work: Workload, capacities: Sequence[int], rounds: int, budget: Budget
) -> list[dict[str, Any]]:
    """The engine alone, one run of each capacity in turn."""
    runs: list[dict[str, Any]] = []
    for turn in range(rounds):
        for capacity in capacities:
            if budget.allows(f"round {turn + 1}: capacity {capacity}"):
                found = compare(engine, engine, replace(work, capacity=capacity), ("engine",), 1)
                runs.append({"capacity": capacity, **asdict(found.runs[0])})
    return runs


def cost(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """ms per step: context -> capacity -> spread over the rounds."""
    times: dict[str, dict[str, list[float]]] = {}
    for r in runs:
        for point in r["report"]["measurements"]["decode"] if r["report"] else ():
            row = times.setdefault(str(point["context"]), {})
            row.setdefault(str(r["capacity"]), []).append(point["ms"]["median"])
    return {c: {k: asdict(Spread.of(v)) for k, v in row.items()} for c, row in times.items()}


def main() -> None:
    parser = arguments("decode", __doc__)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--set", nargs="*", default=["experts=8"], help="changes to the preset")
    parser.add_argument("--prompt-lengths", type=int, nargs="*", default=[512])
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 2048, 8192])
    parser.add_argument("--capacities", type=int, nargs="*", default=CAPACITIES)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=1500, help="seconds for one run of the comparison")
    parser.add_argument("--seconds", type=float, default=7200, help="begin no further part after this time")
    args = parser.parse_args()
    budget = Budget(args.seconds)
    work = Workload(tuple(args.prompt_lengths), tuple(args.contexts), decode_steps=args.steps, threads=args.threads)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        checkpoint, engine = Path(folder) / "checkpoint", Path(folder) / "engine"
        changes = [word for change in args.set for word in ("--set", change)]
        written = answer(cli("synth", args.preset, "-o", checkpoint, *changes, "--json"))
        built = answer(cli("build", checkpoint, "--cpu", "-o", engine, "--json"))
        note(f"{written['parameters'] / 1e9:.2f} G parameters, engine {built['engine_status']}")
        alone = replace(work, prompt_lengths=())
        runs = by_capacity(engine, alone, args.capacities, args.rounds, budget)
        note("capacities done")
        found = compare(
            engine, checkpoint, work, args.subjects, args.rounds, args.timeout, lambda what, done, total: note(what)
        )
    model = {"preset": args.preset, "changes": args.set, "parameters": written["parameters"]}
    save(
        args.out,
        model=model,
        engine={k: built[k] for k in ("engine_status", "bytes", "numerics")},
        bandwidth=settled(found),
        summary=[asdict(line) for line in found.summary],
        same_top1=found.same_top1,
        ms_by_context_and_capacity=cost(runs),
        skipped=budget.skipped,
        comparison=found.to_json(),
        capacity_runs=runs,
    )


if __name__ == "__main__":
    main()
