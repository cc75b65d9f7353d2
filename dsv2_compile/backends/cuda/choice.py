"""Which configuration each kernel of a build gets: a tuned one, the kernel's default, or the nearest to it that
compiles well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, product

from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config, Kernel
from dsv2_compile.targets import Target

FARTHEST = 3
"""Steps along the knobs of a kernel's space, in all, that a configuration may be from the default."""

Tuned = Callable[[Call, Target], Config | None]
"""What tuning has found for a call, if anything."""


@dataclass
class Choice:
    """A `draft.Choose`. ``rejected``: configurations that were compiled and found wanting, by kernel and dims.
    ``exhausted``: kernels and dims that get their default whatever was found of it."""

    tuned: Tuned = lambda call, target: None
    rejected: dict[tuple[str, frozenset[tuple[str, int | float | bool]]], set[tuple[tuple[str, int], ...]]] = field(
        default_factory=dict
    )
    exhausted: set[tuple[str, frozenset[tuple[str, int | float | bool]]]] = field(default_factory=set)

    def __call__(self, call: Call, target: Target) -> Config:
        """The first that is not rejected; the default if all are."""
        kernel = KERNELS[call.kernel]
        default = kernel.default(dict(call.dims), target)
        what = call.kernel, frozenset(call.dims)
        if what in self.exhausted:
            return default
        refused = self.rejected.get(what, set())
        tuned = self.tuned(call, target)
        candidates = chain([tuned] if tuned else [], [default], near(kernel, default))
        return next((c for c in candidates if tuple(sorted(c.items())) not in refused), default)

    def reject(self, request: Request) -> None:
        self.rejected.setdefault((request.kernel, frozenset(request.dims)), set()).add(request.config)

    def give_up(self, request: Request) -> None:
        """Nothing near the default is better than it."""
        self.exhausted.add((request.kernel, frozenset(request.dims)))


def near(kernel: Kernel, default: Config) -> Iterator[Config]:
    """Points of the kernel's space around ``default``, nearest first; of the equally near the smaller tiles first."""
    axes = {}
    for knob, value in default.items():
        values = sorted({*kernel.space.get(knob, ()), value})
        at = values.index(value)
        axes[knob] = [(abs(i - at), v) for i, v in enumerate(values) if abs(i - at) <= FARTHEST]
    points = (tuple(zip(axes, point, strict=True)) for point in product(*axes.values()))
    ranked = sorted(
        (sum(d for _, (d, _) in point), [v for _, (_, v) in point], {knob: v for knob, (_, v) in point})
        for point in points
        if sum(d for _, (d, _) in point) <= FARTHEST
    )
    yield from (config for _, _, config in ranked)
