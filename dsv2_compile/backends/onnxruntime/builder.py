"""Emits ONNX nodes one at a time: names, constants, symbolic sizes, and what a graph computes only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
import sympy
import torch
from onnx import TensorProto, helper, numpy_helper

from dsv2_compile.errors import ModelError
from dsv2_compile.program import Dim, TensorSpec
from dsv2_compile.weights import Recipe

OPSET = 23
"""Oldest ai.onnx version with RMSNormalization and RotaryEmbedding."""
IR_VERSION = 11
ORT = "com.microsoft"
ELEMENT = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64, torch.bool: TensorProto.BOOL}
T = TypeVar("T")


@dataclass(frozen=True)
class Value:
    """An ONNX value: its name in the graph, its shape and dtype."""

    name: str
    spec: TensorSpec

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.spec.shape


def element(dtype: torch.dtype, name: str) -> int:
    if dtype not in ELEMENT:
        raise ModelError(
            f"{name} is {dtype}; the ONNX Runtime backend computes in float32", "build the engine with --dtype float32"
        )
    return ELEMENT[dtype]


def value_info(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    dims = [d if isinstance(d, int) else str(d) for d in spec.shape]
    return helper.make_tensor_value_info(name, element(spec.dtype, name), dims)


@dataclass
class Builder:
    """One ONNX graph under construction. ``portable`` keeps to the ai.onnx operator set.

    ``scope`` prefixes the names of new values; a `child` builds a subgraph of the same graph.
    """

    portable: bool
    scope: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    weights: dict[str, Recipe] = field(default_factory=dict)
    symbols: dict[sympy.Symbol, tuple[str, int]] = field(default_factory=dict)
    """Where each symbol is read: an input and its axis."""
    _memo: dict[Hashable, Any] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)

    def child(self) -> Builder:
        """A builder of a subgraph body: shares names, constants and sizes, keeps its own nodes."""
        return Builder(
            self.portable, self.scope, [], self.initializers, self.weights, self.symbols, self._memo, self._names
        )

    def name(self, hint: str) -> str:
        hint = f"{self.scope}.{hint}" if self.scope else hint
        self._names[hint] = count = self._names.get(hint, -1) + 1
        return f"{hint}.{count}" if count else hint

    def emit(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the name of its value."""
        return self.emit_many(op, 1, *inputs, domain=domain, **attributes)[0]

    def emit_many(self, op: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        names = tuple(self.name(op) for _ in range(outputs))
        self.add(op, inputs, names, domain=domain, **attributes)
        return names

    def add(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
        """Append a node with the given value names; "" stands for an optional one that is left out."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """``make()`` the first time, the same value after: masks and sizes all layers share.

        Call it on the outermost builder only: a value made inside a subgraph is not visible outside.
        """
        if key not in self._memo:
            scope, self.scope = self.scope, ""
            self._memo[key] = make()
            self.scope = scope
        found: T = self._memo[key]
        return found

    def constant(self, data: Any, dtype: type = np.int64) -> str:
        """A small initializer; equal ones are shared."""
        array: np.ndarray[Any, Any] = np.asarray(data, dtype)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._memo:
            name = f"constant.{len(self.initializers)}"
            self.initializers[name] = numpy_helper.from_array(array, name)
            self._memo[key] = name
        return str(self._memo[key])

    def weight(self, name: str, spec: TensorSpec, recipe: Recipe) -> Value:
        """An initializer whose data `place` will find in a weights file; those that no node reads are dropped."""
        self.weights[name] = recipe
        self.initializers[name] = TensorProto(
            name=name,
            data_type=element(spec.dtype, name),
            dims=recipe.shape,
            data_location=TensorProto.EXTERNAL,
        )
        return Value(name, spec)

    # Sizes -------------------------------------------------------------------------------------

    def size(self, dim: Dim) -> str:
        """int64 [1] holding ``dim``."""
        if isinstance(dim, int) or dim.is_Integer:
            return self.constant([int(dim)])
        return self.once(("size", dim), lambda: self._size(dim))

    def _size(self, dim: sympy.Expr) -> str:
        if isinstance(dim, sympy.Symbol):
            value, axis = self.symbols[dim]
            return self.emit("Shape", value, start=axis, end=axis + 1)
        op = {sympy.Add: "Add", sympy.Mul: "Mul"}[dim.func]
        total, *rest = (self.size(a) for a in dim.args)
        for r in rest:
            total = self.emit(op, total, r)
        return total

    def scalar(self, dim: Dim) -> str:
        """int64 [] holding ``dim``."""
        if isinstance(dim, int) or dim.is_Integer:
            return self.constant(int(dim))
        return self.once(("scalar", dim), lambda: self.emit("Squeeze", self.size(dim), self.constant([0])))

    def sizes(self, shape: Sequence[Dim]) -> str:
        """int64 [len(shape)] holding ``shape``."""
        if all(isinstance(d, int) for d in shape):
            return self.constant(shape)
        return self.once(("sizes", tuple(shape)), lambda: self.emit("Concat", *(self.size(d) for d in shape), axis=0))

    # Common small steps ------------------------------------------------------------------------

    def reshape(self, x: str, old: Sequence[Dim], new: Sequence[Dim]) -> str:
        """A constant target shape wherever one says it: 0 keeps the old size, one -1 is computed."""
        target = [
            0 if i < len(old) and not isinstance(d, int) and d == old[i] else d if isinstance(d, int) else -1
            for i, d in enumerate(new)
        ]
        shape = self.constant(target) if target.count(-1) < 2 else self.sizes(new)
        return self.emit("Reshape", x, shape)

    def split(self, x: str, sizes: Iterable[Dim], axis: int = -1) -> tuple[str, ...]:
        sizes = tuple(sizes)
        return self.emit_many("Split", len(sizes), x, self.sizes(sizes), axis=axis)

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        return self.emit("Slice", x, self.constant([start]), self.constant([stop]), self.constant([axis]))

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.emit("Unsqueeze", x, self.constant(axes))

    def matmul_t(self, a: str, b: str, rank: int, alpha: float = 1.0) -> str:
        """alpha * a @ b^T over the last two dims; b has ``rank``. On ONNX Runtime b is read as it lies."""
        if not self.portable:
            return self.emit("FusedMatMul", a, b, domain=ORT, transB=1, alpha=alpha)
        if alpha != 1.0:
            a = self.emit("Mul", a, self.constant(alpha, np.float32))
        turned = [*range(rank - 2), rank - 1, rank - 2]
        return self.emit("MatMul", a, self.emit("Transpose", b, perm=turned))
