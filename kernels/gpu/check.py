"""A kernel against its reference in fp64: one mechanism for the host interpreter, a GPU and the tuner.

Inputs are random and rounded to the kernel's dtype, outputs start poisoned, and the reference sees the
rounded inputs. An element that the reference calls NaN must still be poison afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel
from dsv2_compile.plan.expr import evaluate

Tensors: TypeAlias = dict[str, torch.Tensor | None]
Launch: TypeAlias = Callable[[Kernel, Dims, Config, Mapping[str, int], str, Tensors], None]
"""launch(kernel, dims, config, sizes, dtype, tensors): run it, tensors in place; None stands for a null pointer."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "i32": torch.int32}
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-24}
"""Largest relative error of rounding to a dtype."""
POISON = -(1 << 31)
"""In integer outputs; in float ones it is NaN."""


@dataclass(frozen=True)
class Case:
    """One call. ``inputs(generator)``: float64 or int32 tensors by argument name, None for a null pointer.

    ``outputs``: shape by argument name, for those that are no inputs too; an output that is an input as well is
    updated in place.
    """

    name: str
    kernel: Kernel
    dims: Dims
    sizes: Mapping[str, int]
    inputs: Callable[[torch.Generator], Tensors]
    outputs: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Error:
    """``l2``: relative to the reference's norm. ``largest``: relative to its largest value. ``mistakes``: integers
    that differ, and poison that is missing or should not be there."""

    output: str
    l2: float
    largest: float
    mistakes: int
    limit_l2: float
    limit_largest: float

    @property
    def passed(self) -> bool:
        return not self.mistakes and self.l2 <= self.limit_l2 and self.largest <= self.limit_largest


def check(case: Case, dtype: str, config: Config, launch: Launch, seed: int = 0) -> list[Error]:
    """Run ``case`` once and compare every output."""
    kernel = case.kernel
    given = case.inputs(torch.Generator().manual_seed(seed))
    tensors = {name: _stored(kernel.args[name], value, dtype) for name, value in given.items()}
    exact = {n: t.double() if t is not None and t.is_floating_point() else t for n, t in tensors.items()}
    expected = kernel.reference(
        case.dims, case.sizes, **{n: None if t is None else t.clone() for n, t in exact.items()}
    )
    for name, shape in case.outputs.items():
        if name not in tensors:
            kind = _kind(kernel.args[name], dtype)
            tensors[name] = torch.full(shape, POISON if kind == "i32" else float("nan"), dtype=DTYPES[kind])
    for name, kind in kernel.args.items():
        if kind.startswith("*"):
            tensors.setdefault(name, None)
    launch(kernel, case.dims, config, case.sizes, dtype, tensors)
    return [
        _compare(kernel, name, tensors[name], value, dtype) for name, value in expected.items() if value is not None
    ]


def _kind(declared: str, dtype: str) -> str:
    return dtype if declared == "*T" else declared.removeprefix("*")


def _stored(declared: str, value: torch.Tensor | None, dtype: str) -> torch.Tensor | None:
    return None if value is None else value.to(DTYPES[_kind(declared, dtype)]).contiguous()


def _compare(kernel: Kernel, name: str, actual: torch.Tensor | None, expected: torch.Tensor, dtype: str) -> Error:
    if actual is None or actual.shape != expected.shape:
        raise ValueError(f"{kernel.name}: output {name} is {expected.shape} by the reference, the case says otherwise")
    if not expected.is_floating_point():
        return Error(name, 0.0, 0.0, int((actual != expected).sum()), 0.0, 0.0)
    got, untouched = actual.double(), expected.isnan()
    mistakes = int((got.isnan() != untouched).sum())
    both = ~untouched & ~got.isnan()
    difference, size = (got - expected)[both], expected[both]
    if not size.numel():
        return Error(name, 0.0, 0.0, mistakes, 0.0, 0.0)
    norm = float(size.norm()) or 1.0
    unit = max(UNIT[dtype] * kernel.rounded(name) ** 0.5, UNIT["fp32"] * 64)
    return Error(
        name,
        float(difference.norm()) / norm,
        float(difference.abs().max()) / (float(size.abs().max()) or 1.0),
        mistakes,
        unit,
        4 * unit,
    )


def on_host(
    kernel: Kernel,
    dims: Dims,
    config: Config,
    sizes: Mapping[str, int],
    dtype: str,
    tensors: Tensors,
    order: Sequence[int] | None = None,
) -> None:
    """`Launch` through the interpreter; only the tensors' own memory may be touched."""
    from dsv2_compile.kernels.gpu.interpret import Memory, run

    memory, args = Memory(), dict[str, tuple[str, int | float]]()
    for name, declared in kernel.args.items():
        if not declared.startswith("*"):
            args[name] = (declared, sizes[name])
            continue
        tensor, kind = tensors[name], f"*{_kind(declared, dtype)}"
        args[name] = (kind, 0 if tensor is None else tensor.data_ptr())
        if tensor is not None:
            memory.add(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    grid = [evaluate(g, {}) for g in kernel.grid(dims, config, sizes)]
    run(kernel.fn, args, kernel.constants(dims, config), grid, memory, order)


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """float64 [*shape] from a normal distribution."""
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale
