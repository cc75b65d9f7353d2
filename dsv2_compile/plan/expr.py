"""Integer expressions over a plan's symbols: grids, sizes and scalar arguments of launches.

In JSON an expression is an int, a symbol's name, or ``[operator, left, right]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Size: TypeAlias = "int | Expr"

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "cdiv": lambda a, b: -(-a // b),
    "min": min,
}
MAX_DEPTH = 16
LIMIT = 1 << 62


@dataclass(frozen=True)
class Expr:
    """A symbol (``op`` "symbol", ``args`` its name) or an operator over two sizes."""

    op: str
    args: tuple[Any, ...]

    def __add__(self, other: Size) -> Size:
        return apply("+", self, other)

    def __radd__(self, other: int) -> Size:
        return apply("+", other, self)

    def __sub__(self, other: Size) -> Size:
        return apply("-", self, other)

    def __rsub__(self, other: int) -> Size:
        return apply("-", other, self)

    def __mul__(self, other: Size) -> Size:
        return apply("*", self, other)

    def __rmul__(self, other: int) -> Size:
        return apply("*", other, self)

    def __str__(self) -> str:
        if self.op == "symbol":
            return str(self.args[0])
        a, b = self.args
        return f"{self.op}({a}, {b})" if self.op.isalpha() else f"({a} {self.op} {b})"


def symbol(name: str) -> Expr:
    return Expr("symbol", (name,))


def apply(op: str, a: Size, b: Size) -> Size:
    """``a op b``, computed where both are known; x * 1, x + 0 and cdiv(x, 1) are x."""
    if isinstance(a, int) and isinstance(b, int):
        return OPERATORS[op](a, b)
    if (op in ("*", "cdiv") and b == 1) or (op in ("+", "-") and b == 0):
        return a
    if (op == "*" and a == 1) or (op == "+" and a == 0):
        return b
    return Expr(op, (a, b))


def cdiv(a: Size, b: Size) -> Size:
    """a / b, rounded up."""
    return apply("cdiv", a, b)


def minimum(a: Size, b: Size) -> Size:
    return apply("min", a, b)


def evaluate(e: Size, symbols: Mapping[str, int]) -> int:
    """The value of ``e``. Raises KeyError for a symbol without one, OverflowError beyond 2**62."""
    if isinstance(e, int):
        return e
    if e.op == "symbol":
        return symbols[e.args[0]]
    value = OPERATORS[e.op](evaluate(e.args[0], symbols), evaluate(e.args[1], symbols))
    if not -LIMIT < value < LIMIT:
        raise OverflowError(f"{e} is {value}")
    return value


def symbols_of(e: Size) -> frozenset[str]:
    if isinstance(e, int):
        return frozenset()
    if e.op == "symbol":
        return frozenset(e.args)
    return symbols_of(e.args[0]) | symbols_of(e.args[1])


def to_json(e: Size) -> Any:
    if isinstance(e, int):
        return e
    return e.args[0] if e.op == "symbol" else [e.op, *map(to_json, e.args)]


def from_json(data: Any, known: frozenset[str] | set[str], depth: int = 0) -> Size:
    """Strict inverse of `to_json`. Raises ValueError for anything else, unknown symbols and deep nesting included."""
    if depth > MAX_DEPTH:
        raise ValueError(f"an expression is nested more than {MAX_DEPTH} deep")
    if type(data) is int and -LIMIT < data < LIMIT:
        return data
    if isinstance(data, str):
        if data not in known:
            raise ValueError(f"unknown symbol {data!r}")
        return symbol(data)
    if isinstance(data, list) and len(data) == 3 and isinstance(data[0], str) and data[0] in OPERATORS:
        left, right = (from_json(part, known, depth + 1) for part in data[1:])
        if data[0] == "cdiv" and not (isinstance(right, int) and right > 0):
            raise ValueError("cdiv divides by a positive number only")
        return Expr(data[0], (left, right))
    raise ValueError(f"{str(data)[:60]!r} is not an expression")
