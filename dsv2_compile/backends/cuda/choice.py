"""Which configuration each kernel of a build gets: the kernel's default, or the nearest to it that compiles well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel
from dsv2_compile.targets import Target

FARTHEST = 3
"""Steps along the knobs of a kernel's space, in all, that a configuration may be from the default."""


@dataclass
class Choice:
    """A `draft.Choose`. ``rejected``: configurations that were compiled and found wanting, by kernel and dims."""

    rejected: dict[tuple[str, frozenset[tuple[str, int | float | bool]]], set[tuple[tuple[str, int], ...]]] = field(
        default_factory=dict
    )

    def __call__(self, kernel: Kernel, dims: Dims, target: Target) -> Config:
        """The default where nothing better is known; also if all that is near it has been rejected."""
        default = kernel.default(dims, target)
        refused = self.rejected.get((kernel.name, frozenset(dims.items())))
        if not refused:
            return default
        return next((c for c in near(kernel, default) if tuple(sorted(c.items())) not in refused), default)

    def reject(self, request: Request) -> None:
        self.rejected.setdefault((request.kernel, frozenset(request.dims)), set()).add(request.config)


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
