"""Reads the keys of a JSON object of unknown origin and collects what is wrong, one line each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

REQUIRED: Any = object()
"""As ``default``: a missing key is a problem."""


@dataclass(frozen=True)
class Span:
    """Allowed numbers: ``low`` (or above it, if ``above``) to ``high``."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return value <= self.high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        return f"{'above ' if self.above else ''}{_plain(self.low)} to {_plain(self.high)}"


class Fields:
    """``data`` is the object at key path ``path``. A reading method returns None for a value it refuses,
    and for null where ``nullable``; ``problems`` gets a line with key path, value and what is allowed."""

    def __init__(self, data: dict[str, Any], problems: list[str], path: str = "") -> None:
        self.data, self.problems, self.path = data, problems, path
        self.read: set[str] = set()

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def refuse(self, key: str, reason: str) -> None:
        self.problems.append(f"{self.at(key)}: {reason}")

    def integer(self, key: str, span: Span, default: Any = REQUIRED, nullable: bool = False) -> int | None:
        kind = f"an integer from {span}{', or null' if nullable else ''}"
        value: int | None = self._checked(key, lambda v: type(v) is int and v in span, kind, default, nullable)
        return value

    def number(self, key: str, span: Span, default: Any = REQUIRED) -> float | None:
        kind = f"a number {'' if span.above else 'from '}{span}"
        value = self._checked(key, lambda v: type(v) in (int, float) and v in span, kind, default, False)
        return None if value is None else float(value)

    def flag(self, key: str, default: bool) -> bool | None:
        value: bool | None = self._checked(key, lambda v: type(v) is bool, "true or false", default, False)
        return value

    def choice(self, key: str, allowed: Collection[str], default: Any = REQUIRED) -> str | None:
        kind = f"one of {', '.join(allowed)}"
        value: str | None = self._checked(key, lambda v: isinstance(v, str) and v in allowed, kind, default, False)
        return value

    def ids(self, key: str, span: Span) -> tuple[int, ...]:
        """A token id, a list of them, or null: ()."""

        def allowed(v: Any) -> bool:
            listed = v if isinstance(v, list) else [v]
            return len(listed) <= 64 and all(type(i) is int and i in span for i in listed)

        kind = f"an integer from {span}, a list of up to 64 of them, or null"
        value = self._checked(key, allowed, kind, None, False)
        return () if value is None else tuple(value) if isinstance(value, list) else (value,)

    def only(self, key: str, value: Any, reason: str) -> None:
        """``key`` may be absent, null or ``value``."""
        self.read.add(key)
        found = self.data.get(key)
        same_kind = isinstance(found, bool) == isinstance(value, bool)
        if found is not None and not (same_kind and found == value):
            self.refuse(key, f"{short(found)}: {reason}; it may be {'absent' if value is None else short(value)}")

    def object(self, key: str) -> Fields | None:
        """A nested object; None if absent or null."""
        value = self._checked(key, lambda v: isinstance(v, dict), "an object or null", None, False)
        return None if value is None else Fields(value, self.problems, self.at(key))

    def _checked(self, key: str, allowed: Callable[[Any], bool], kind: str, default: Any, nullable: bool) -> Any:
        """``default`` for a key that is absent, or null where null is not a value of its own."""
        self.read.add(key)
        value = self.data.get(key)
        if value is None:
            if nullable and key in self.data:
                return None
            if default is not REQUIRED:
                return default
        if value is None or not allowed(value):
            self.refuse(key, f"{short(value) if key in self.data else 'missing'}; it must be {kind}")
            return None
        return value


def short(value: Any, limit: int = 60) -> str:
    """For messages: one ASCII line of at most ``limit`` characters."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
