"""Points of a kernel's space that are worth a trial, and the best of them by estimate."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator

from dsv2_compile.autotune.predict import estimate
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config
from dsv2_compile.targets import Target

MOST_ESTIMATES = 4096
"""Points of a space that are estimated for seeds; of a larger space as many, taken at random."""


def plausible(call: Call, config: Config, target: Target) -> bool:
    return estimate(call, config, target) is not None


def seeds(call: Call, target: Target, count: int) -> list[Config]:
    """The ``count`` best of the space by estimate, best first; the same ones each time."""
    ranked = ((estimate(call, c, target), i, c) for i, c in enumerate(_points(call)))
    possible = ((e, i, c) for e, i, c in ranked if e is not None)
    return [c for _, _, c in heapq.nsmallest(count, possible)]


def _points(call: Call) -> Iterator[Config]:
    space = KERNELS[call.kernel].space
    if math.prod(map(len, space.values())) <= MOST_ESTIMATES:
        yield from (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
        return
    rng = random.Random(repr(call))
    for _ in range(MOST_ESTIMATES):
        yield {knob: rng.choice(values) for knob, values in space.items()}
