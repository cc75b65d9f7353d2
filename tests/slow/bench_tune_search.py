"""How much of a space the search has to try: on a SIMULATED device, whose times are made up, against all of the space.

    python -m tests.slow.bench_tune_search [--out FILE] [--seeds N]

Writes artifacts/tuning/search.json. Nothing is compiled or measured. The made-up time of a configuration is that of
the model, bent at random: every value of a knob, and every pair of values of two knobs, has a factor of its own, and
every reading has noise. So the order of the model's favourites is wrong, as it will be on a GPU, and the search has to
find out. It may try a tenth of the possible points. ``gap``: how much slower the truth of what it takes is than the
truth of the best point; beside it what as many random points, and the model's favourite alone, come to.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.predict import estimate
from dsv2_compile.autotune.search import Sampler, pairs
from dsv2_compile.autotune.space import plausible
from dsv2_compile.checkpoint.presets import configure
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config
from dsv2_compile.kernels.gpu.shapes import shapes
from dsv2_compile.targets import target
from tests.slow.figures import ROOT, arguments, note, save

GPU = target("h800")
ONE, PAIR, NOISE = 0.06, 0.03, 0.005
"""Standard deviations of the logarithms: of a value's factor, of a pair's, of a reading."""
LEAST, MOST = 150, 3000
"""Possible points of a space; larger ones are thinned out. Smaller ones are tried whole by every sweep."""
SHARE, NEAR = 0.1, 0.02
BATCH = 8
MOST_DECODED = 128
SEEDED = 0.4
"""Of the trials that start from the model's favourites: as in a full sweep."""

Space: TypeAlias = Mapping[str, list[int]]


class Simulated:
    """A device that does not exist. ``truth`` is without noise."""

    def __init__(self, call: Call, points: list[Config], seed: int) -> None:
        self._rng = random.Random(f"{call} {seed}")
        self._factors: dict[Any, float] = {}
        self._truth = {pairs(p): self._time(call, p) for p in points}

    def _time(self, call: Call, point: Config) -> float:
        bent = sum(self._factor(pair, ONE) for pair in point.items())
        bent += sum(self._factor(two, PAIR) for two in itertools.combinations(sorted(point.items()), 2))
        found = estimate(call, point, GPU)
        assert found is not None
        return found * math.exp(bent)

    def _factor(self, what: Any, deviation: float) -> float:
        return self._factors.setdefault(what, self._rng.gauss(0, deviation))

    def truth(self, point: Config) -> float:
        return self._truth[pairs(point)]

    def read(self, point: Config) -> float:
        return self.truth(point) * math.exp(self._rng.gauss(0, NOISE))


def reduced(call: Call) -> Space:
    """The kernel's space, of whose longest knob the second value is dropped until `MOST` points are possible."""
    space = {knob: list(values) for knob, values in KERNELS[call.kernel].space.items()}
    while len(possible(call, space)) > MOST:
        longest = max(space, key=lambda knob: len(space[knob]))
        del space[longest][1]
    return space


def possible(call: Call, space: Space) -> list[Config]:
    every = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
    return [c for c in every if plausible(call, c, GPU)]


def searched(call: Call, space: Space, points: list[Config], device: Simulated, seed: int) -> Config:
    """What the search takes after a tenth of ``points``."""
    limit = max(1, int(len(points) * SHARE))
    favourites = sorted(points, key=lambda p: estimate(call, p, GPU) or math.inf)[: int(limit * SEEDED)]
    how = Sampler(space, favourites, limit, seed, lambda c: plausible(call, c, GPU))
    readings: dict[Any, tuple[float, Config]] = {}
    while configs := how.ask(min(BATCH, limit - len(readings))):
        for config in configs:
            readings[pairs(config)] = device.read(config), config
            how.tell(config, readings[pairs(config)][0])
    assert len(readings) <= limit
    return min(readings.values(), key=lambda r: r[0])[1]


def case(call: Call, seeds: int) -> dict[str, Any] | None:
    space = reduced(call)
    points = possible(call, space)
    if len(points) < LEAST:
        return None
    gaps: dict[str, list[float]] = {"search": [], "random": [], "favourite": []}
    for seed in range(seeds):
        device = Simulated(call, points, seed)
        best = min(map(device.truth, points))
        limit = max(1, int(len(points) * SHARE))
        taken = {
            "search": searched(call, space, points, device, seed),
            "random": min(random.Random(seed).sample(points, limit), key=device.read),
            "favourite": min(points, key=lambda p: estimate(call, p, GPU) or math.inf),
        }
        for name, config in taken.items():
            gaps[name].append(device.truth(config) / best - 1)
    return {
        "kernel": call.kernel,
        "sizes": dict(call.sizes),
        "points": len(points),
        "trials": max(1, int(len(points) * SHARE)),
        **{f"{n}_gap": {"median": round(median(g), 4), "worst": round(max(g), 4)} for n, g in gaps.items()},
        "within_2_percent": sum(g <= NEAR for g in gaps["search"]) / seeds,
    }


def calls() -> list[Call]:
    """Of V2-Lite, each kernel once for decode of 32 sequences and once for a long prefill."""
    config = configure("lite", {})
    found: dict[tuple[str, int], Call] = {}
    for rows in (32, 2048):
        sizes = {"rows": rows, "batch": 32 if rows == 32 else 1, "context": 32 * 2048 if rows == 32 else rows}
        for shape in shapes(config, rows):
            if shape.kernel == "mla_decode" and rows > MOST_DECODED:
                continue
            found.setdefault((shape.kernel, rows), Call.of(KERNELS[shape.kernel], shape.dims, sizes, "bf16"))
    return list(found.values())


def main() -> None:
    parser = arguments("tune_search", __doc__)
    parser.set_defaults(out=ROOT / "artifacts/tuning/search.json")
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    rows, small = [], []
    for call in calls():
        row = case(call, args.seeds)
        if row is None:
            small.append(call.kernel)
        else:
            rows.append(row)
            note(
                f"{row['kernel']} {row['points']} points: {row['search_gap']}, {row['within_2_percent']:.0%} within 2 %"
            )
    bent = {"of a value": ONE, "of a pair": PAIR, "of a reading": NOISE}
    save(
        Path(args.out),
        device="SIMULATED: made-up times, see tests/slow/bench_tune_search.py",
        deviations=bent,
        seeds=args.seeds,
        tried_whole=sorted(set(small)),
        searched=rows,
    )


if __name__ == "__main__":
    main()
