"""The dsv2:: dialect: what an operator is, and the registry of all of them.

An operator is a schema, a shape rule over `TensorSpec`s (so symbolic dims survive), a plain torch
reference that is its meaning in any float dtype up to fp64, and its cost in bytes and FLOP.
Importing `dsv2_compile.kernels.ops` registers every family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from dsv2_compile.program import Dim, TensorSpec

_LIBRARY = torch.library.Library("dsv2", "DEF")
OPS: dict[Any, Op] = {}


@dataclass(frozen=True)
class Cost:
    """Least traffic in bytes (each operand and result once) and FLOP (a multiply-add is two)."""

    bytes: Dim
    flops: Dim


@dataclass(frozen=True)
class Op:
    """``shapes(*args)`` and ``flops(*args)`` get the node's arguments with specs in place of tensors."""

    name: str
    overload: Any
    reference: Callable[..., Any]
    shapes: Callable[..., TensorSpec | tuple[TensorSpec, ...]]
    flops: Callable[..., Dim]
    touched: Callable[..., Dim] | None

    def specs(self, *args: Any) -> TensorSpec | tuple[TensorSpec, ...]:
        return self.shapes(*args)

    def cost(self, *args: Any) -> Cost:
        if self.touched is not None:
            return Cost(self.touched(*args), self.flops(*args))
        out = self.shapes(*args)
        tensors = [a for a in args if isinstance(a, TensorSpec)] + list(out if isinstance(out, tuple) else [out])
        return Cost(sum((nbytes(t) for t in tensors), 0), self.flops(*args))


def nbytes(spec: TensorSpec) -> Dim:
    return numel(spec.shape) * spec.dtype.itemsize


def numel(shape: Sequence[Dim]) -> Dim:
    total: Dim = sympy.Integer(1)
    for d in shape:
        total = total * d
    return total


def op(
    schema: str,
    shapes: Callable[..., TensorSpec | tuple[TensorSpec, ...]],
    flops: Callable[..., Dim],
    touched: Callable[..., Dim] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated torch function as ``dsv2::<schema>``; it runs on every device.

    ``touched`` replaces the default byte count where not every operand is read whole.
    """
    name = schema.partition("(")[0]

    def register(reference: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        overload = getattr(torch.ops.dsv2, name).default
        OPS[overload] = Op(name, overload, reference, shapes, flops, touched)
        return reference

    return register


def upcast(x: torch.Tensor) -> torch.Tensor:
    """fp32 for half types, unchanged for fp32 and fp64."""
    return x.to(torch.float32) if x.dtype in (torch.bfloat16, torch.float16) else x
