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
    """The ``count`` best of the space by estimate, best first; the same ones each time. Of points with one estimate,
    the first: most of them differ in a knob that does nothing there."""
    first: dict[float, Config] = {}
    for config in _points(call):
        if (found := estimate(call, config, target)) is not None:
            first.setdefault(found, config)
    return [first[found] for found in heapq.nsmallest(count, first)]


def _points(call: Call) -> Iterator[Config]:
    space = KERNELS[call.kernel].space
    if math.prod(map(len, space.values())) <= MOST_ESTIMATES:
        yield from (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
        return
    rng = random.Random(repr(call))
    for _ in range(MOST_ESTIMATES):
        yield {knob: rng.choice(values) for knob, values in space.items()}
