"""Structural patterns over FX nodes, matched from an anchor towards the inputs.

A pattern is a tree of `Call` (an operator and its argument patterns), `Var` (captures whatever is
there; the same name twice must be the same thing) and plain values (equal literals). A failed match
is a `Miss` that says how far it got and what stood there instead, so that a pass that finds nothing
can name its nearest miss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

_COMMUTATIVE = {torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor}


@dataclass(frozen=True)
class Var:
    """Captures a node or a literal under ``name``; ``where`` restricts it, ``what`` says how in words."""

    name: str
    where: Callable[[Any], bool] | None = None
    what: str = ""


def two(name: str) -> Var:
    """Captures a list of exactly two sizes: a split into two parts, not the first two of several."""
    return Var(name, lambda v: isinstance(v, (list, tuple)) and len(v) == 2, "two sizes")


def weight_node(name: str) -> Var:
    return Var(name, lambda v: getattr(v, "op", "") == "get_attr", "a weight")


@dataclass(frozen=True)
class Call:
    """A call of ``target`` with exactly these arguments; ``name`` captures the node itself."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    name: str | None = None


@dataclass(frozen=True)
class Match:
    root: fx.Node
    captures: dict[str, Any]
    size: int

    def __getitem__(self, name: str) -> Any:
        return self.captures[name]

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Miss:
    """The attempt at ``root`` stopped after ``size`` matched nodes, at ``at``."""

    root: fx.Node
    size: int
    at: str
    expected: str
    found: str

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return (
            f"nearest miss at {self.root.name}: {self.size} nodes matched, "
            f"then {self.at} should be {self.expected} but is {self.found}"
        )


class _Failed(Exception):
    pass


class _Attempt:
    def __init__(self, root: fx.Node) -> None:
        self.root = root
        self.nearest = Miss(root, -1, root.name, "?", "?")

    def fail(self, size: int, at: str, expected: str, found: Any) -> None:
        if size > self.nearest.size:
            self.nearest = Miss(self.root, size, at, expected, _show(found))
        raise _Failed

    def walk(
        self, pattern: Any, value: Any, at: str, captures: dict[str, Any], size: int
    ) -> tuple[dict[str, Any], int]:
        if isinstance(pattern, Var):
            return self._var(pattern, value, at, captures, size)
        if isinstance(pattern, Call):
            return self._call(pattern, value, at, captures, size)
        if isinstance(pattern, (list, tuple)):
            if not isinstance(value, (list, tuple)) or len(value) != len(pattern):
                self.fail(size, at, f"a list of {len(pattern)}", value)
            return self._all(pattern, value, at, captures, size)
        if type(pattern) is not type(value) or pattern != value:
            self.fail(size, at, repr(pattern), value)
        return captures, size

    def _var(
        self, pattern: Var, value: Any, at: str, captures: dict[str, Any], size: int
    ) -> tuple[dict[str, Any], int]:
        if pattern.name in captures:
            known = captures[pattern.name]
            if known is not value and (isinstance(value, fx.Node) or known != value):
                self.fail(size, at, f"{pattern.name} = {_show(known)} again", value)
            return captures, size
        if pattern.where and not pattern.where(value):
            self.fail(size, at, pattern.what or f"another {pattern.name}", value)
        return {**captures, pattern.name: value}, size

    def _call(
        self, pattern: Call, value: Any, at: str, captures: dict[str, Any], size: int
    ) -> tuple[dict[str, Any], int]:
        if not isinstance(value, fx.Node) or value.op != "call_function" or value.target is not pattern.target:
            self.fail(size, at, str(pattern.target), value)
        if len(value.args) != len(pattern.args) or set(value.kwargs) != set(pattern.kwargs):
            self.fail(size, value.name, f"{len(pattern.args)} arguments, keywords {sorted(pattern.kwargs)}", value)
        if pattern.name:
            captures, size = self._var(Var(pattern.name), value, at, captures, size)
        kwargs = [value.kwargs[k] for k in pattern.kwargs]
        captures, _ = self._all(list(pattern.kwargs.values()), kwargs, value.name, captures, size)
        size += 1
        if pattern.target in _COMMUTATIVE and len(pattern.args) == 2:
            try:
                return self._all(pattern.args, value.args, value.name, captures, size)
            except _Failed:
                return self._all(pattern.args, value.args[::-1], value.name, captures, size)
        return self._all(pattern.args, value.args, value.name, captures, size)

    def _all(
        self, patterns: Any, values: Any, at: str, captures: dict[str, Any], size: int
    ) -> tuple[dict[str, Any], int]:
        for i, (p, v) in enumerate(zip(patterns, values, strict=True)):
            captures, size = self.walk(
                p, v, f"argument {i} of {at}" if isinstance(values, tuple) else at, captures, size
            )
        return captures, size


def _show(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"{value.name} = {value.target}" if value.op == "call_function" else f"{value.op} {value.target}"
    return repr(value)


def match(pattern: Any, node: fx.Node) -> Match | Miss:
    """Match ``pattern`` at ``node``."""
    attempt = _Attempt(node)
    try:
        captures, size = attempt.walk(pattern, node, node.name, {}, 0)
    except _Failed:
        return attempt.nearest
    return Match(node, captures, size)


def item(value: Any, index: int) -> Call:
    """Pattern of ``value[index]``, one result of a multi-output operator."""
    import operator

    return Call(operator.getitem, (value, index))
