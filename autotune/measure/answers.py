"""Cases that a configuration is checked and timed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from dsv2_compile.autotune.measure.jobs import Subject
from dsv2_compile.kernels.gpu.cases import case_for, held_out
from dsv2_compile.kernels.gpu.check import Case, Tensors
from dsv2_compile.kernels.gpu.kernel import Dims, Kernel

MOST_FLOPS = 2e12
"""Of a call whose reference is computed at its own sizes: seconds in fp64 on a host with a GPU."""


def checked_case(subject: Subject, most_flops: float = MOST_FLOPS) -> Case:
    """The call itself, or if its reference takes too long the largest of the held-out shapes: the same dims, fewer
    rows."""
    call, kernel = subject.call, subject.steps[0].kernel
    if kernel.cost(dict(call.dims), dict(call.sizes)).flops <= most_flops:
        return timed_case(subject)
    sizes = dict(call.sizes)
    return max(held_out_cases(subject), key=lambda c: kernel.cost(c.dims, {**sizes, **c.sizes}).flops)


def held_out_cases(subject: Subject) -> list[Case]:
    kernel = subject.steps[0].kernel
    return [replace(c, kernel=kernel) for c in held_out(subject.call, subject.steps[0].config)]


def timed_case(subject: Subject) -> Case:
    """The call itself. What its reference is given and makes of it is kept for the next configuration."""
    kernel = subject.steps[0].kernel
    if not _kept or _kept[0] != subject.call or _kept[1] is not kernel:
        _kept[:] = subject.call, kernel, remembering(replace(case_for(subject.call), kernel=kernel))
    case: Case = _kept[2]
    return case


_kept: list[Any] = []
"""Call, kernel and case of the latest: a process measures one call for long."""


def remembering(case: Case) -> Case:
    """The same case. Its inputs are made once a seed, what is expected once for the knobs that its reference reads."""
    inputs: dict[int, Tensors] = {}
    found: list[tuple[dict[str, Any], Mapping[str, Any]]] = []

    def given(generator: torch.Generator) -> Tensors:
        seed = generator.initial_seed()
        if seed not in inputs:
            inputs.clear()
            found.clear()
            inputs[seed] = case.inputs(generator)
        return {n: t if t is None or t.is_floating_point() else t.clone() for n, t in inputs[seed].items()}

    def expected(kernel: Kernel, dims: Dims, sizes: Mapping[str, int], stored: Tensors) -> Mapping[str, Any]:
        for read, values in found:
            if all(dims.get(n, _ABSENT) == v for n, v in read.items()):
                return values
        noting = _Noting(dims)
        values = case.expected(kernel, noting, sizes, stored)
        found.append((noting.read, values))
        return values

    return replace(case, inputs=given, expected=expected)


_ABSENT = object()


class _Noting(Mapping[str, Any]):
    """Knows which of its entries were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        self.read[name] = self._values.get(name, _ABSENT)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
