"""The few ATen operators that stay in a fused graph. Shapes come from specs, never from traced size arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy
import torch

from dsv2_compile.backends.onnxruntime.builder import Builder, Value
from dsv2_compile.errors import ModelError
from dsv2_compile.program import Dim, TensorSpec

Result = str | tuple[str, ...] | Value | Dim
Rule = Callable[..., Result]
"""``rule(builder, out, *args, **kwargs)``: ``out`` is the node's spec, arguments hold `Value`s and sizes.

A name or a tuple of names becomes `Value`s with the specs of ``out``; anything else stands as it is.
"""
_ATEN = torch.ops.aten
_FAR = 1 << 62


def embedding(b: Builder, out: TensorSpec, table: Value, ids: Value, *_: Any) -> str:
    return b.emit("Gather", table.name, ids.name, axis=0)


def linear(b: Builder, out: TensorSpec, x: Value, w: Value) -> str:
    """x [..., K], w [N, K]. Portable: Gemm, which reads w as it lies in every runtime."""
    if not b.portable:
        return b.matmul_t(x.name, w.name, 2)
    flat = b.reshape(x.name, x.shape, (-1, x.shape[-1]))
    return b.reshape(b.emit("Gemm", flat, w.name, transB=1), (), out.shape)


def _binary(op: str) -> Rule:
    def rule(b: Builder, out: TensorSpec, x: Value, y: Value | Dim | float) -> str:
        return b.emit(op, x.name, _operand(b, y, x.spec))

    return rule


def _operand(b: Builder, y: Value | Dim | float, like: TensorSpec) -> str:
    if isinstance(y, Value):
        return y.name
    if isinstance(y, sympy.Expr):
        return b.scalar(y)
    return b.constant(y, np.int64 if like.dtype == torch.int64 else np.float32)


def silu(b: Builder, out: TensorSpec, x: Value) -> str:
    return b.emit("Mul", x.name, b.emit("Sigmoid", x.name))


def reshape(b: Builder, out: TensorSpec, x: Value, *_: Any) -> str:
    return b.reshape(x.name, x.shape, out.shape)


def split(b: Builder, out: tuple[TensorSpec, ...], x: Value, _: Any, dim: int = 0) -> tuple[str, ...]:
    return b.split(x.name, (part.shape[dim] for part in out), dim)


def getitem(b: Builder, out: TensorSpec, values: Sequence[Value], index: int) -> Value:
    return values[index]


def cat(b: Builder, out: TensorSpec, values: Sequence[Value], dim: int = 0) -> str:
    return b.emit("Concat", *(v.name for v in values), axis=dim)


def slice_(
    b: Builder, out: TensorSpec, x: Value, dim: int = 0, start: Dim | None = 0, end: Dim | None = _FAR, step: int = 1
) -> str:
    bounds = [b.size(0 if start is None else start), b.size(_FAR if end is None else end)]
    return b.emit("Slice", x.name, *bounds, b.constant([dim]), b.constant([step]))


def select(b: Builder, out: TensorSpec, x: Value, dim: int, index: Dim) -> str:
    return b.emit("Gather", x.name, b.scalar(index), axis=dim)


def expand(b: Builder, out: TensorSpec, x: Value, *_: Any) -> str:
    return b.emit("Expand", x.name, b.sizes(out.shape))


def index(b: Builder, out: TensorSpec, x: Value, indices: Sequence[Value | None]) -> str:
    """x[i] or x[i, j, ...] with int64 indices of one shape on the leading dims."""
    given = [i for i in indices if i is not None]
    if list(indices) != given or len({i.shape for i in given}) != 1:
        raise ModelError(
            f"cannot lower indexing of {x.name} by {[str(i and i.spec) for i in indices]}",
            "index leading dims with tensors of one shape",
        )
    if len(given) == 1:
        return b.emit("Gather", x.name, given[0].name, axis=0)
    stacked = b.emit("Concat", *(b.unsqueeze(i.name, -1) for i in given), axis=-1)
    return b.emit("GatherND", x.name, stacked)


def arange(b: Builder, out: TensorSpec, end: Dim, **_: Any) -> str:
    return b.once(("arange", end), lambda: b.emit("Range", b.scalar(0), b.scalar(end), b.scalar(1)))


def clamp(b: Builder, out: TensorSpec, x: Value, min: Dim | None = None, max: Dim | None = None) -> str:
    name = x.name
    for op, bound in (("Max", min), ("Min", max)):
        if bound is not None:
            name = b.emit(op, name, _operand(b, bound, x.spec))
    return name


def sym_size(b: Builder, out: Any, x: Value, dim: int) -> Dim:
    return x.shape[dim]


def _on_sizes(fn: Callable[[Any, Any], Any]) -> Rule:
    return lambda b, out, x, y: fn(x, y)


RESHAPES = (
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN._unsafe_view.default,
    _ATEN.flatten.using_ints,
    _ATEN.unflatten.int,
    _ATEN.unsqueeze.default,
    _ATEN.squeeze.dim,
)
RULES: dict[Any, Rule] = {
    _ATEN.embedding.default: embedding,
    _ATEN.linear.default: linear,
    _ATEN.add.Tensor: _binary("Add"),
    _ATEN.sub.Tensor: _binary("Sub"),
    _ATEN.mul.Tensor: _binary("Mul"),
    _ATEN.silu.default: silu,
    **dict.fromkeys(RESHAPES, reshape),
    _ATEN.split.Tensor: split,
    _ATEN.split_with_sizes.default: split,
    operator.getitem: getitem,
    _ATEN.cat.default: cat,
    _ATEN.slice.Tensor: slice_,
    _ATEN.select.int: select,
    _ATEN.expand.default: expand,
    _ATEN.index.Tensor: index,
    _ATEN.arange.default: arange,
    _ATEN.clamp.default: clamp,
    _ATEN.sym_size.int: sym_size,
    operator.add: _on_sizes(operator.add),
    operator.sub: _on_sizes(operator.sub),
    operator.mul: _on_sizes(operator.mul),
}
