"""JSON of unknown origin: bounded size, depth and count; no duplicate keys, NaN, Infinity or huge numbers.

Also the small part of JSON Schema that ``manifest.schema.json`` uses, so that the published schema
is what the parser checks and not a second description of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

MAX_DEPTH = 24
MAX_COMMAS = 200_000
MAX_STRING = 65_536


class JsonError(ValueError):
    """One line: what is wrong and where."""


def loads(data: bytes, max_bytes: int, max_elements: int = MAX_COMMAS, max_string: int = MAX_STRING) -> Any:
    """The value, or JsonError. Time and memory stay proportional to ``max_bytes``."""
    if len(data) > max_bytes:
        raise JsonError(f"{len(data)} bytes, the limit is {max_bytes}")
    if data.count(b",") > max_elements:
        raise JsonError(f"more than {max_elements} elements")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
        _walk(value, 0, max_string)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError(f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as e:
        raise JsonError(f"not valid JSON: {e}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise JsonError(f"duplicate key {twice[:80]!r}")
    return out


def _refuse_constant(text: str) -> Any:
    raise JsonError(f"{text} is not a JSON number")


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise JsonError(f"integer {text[:24]} does not fit 64 bits")
    return int(text)


def _parse_float(text: str) -> float:
    if len(text) > 64 or not math.isfinite(float(text)):
        raise JsonError(f"number {text[:24]} is out of range")
    return float(text)


def _walk(value: Any, depth: int, max_string: int) -> None:
    if depth > MAX_DEPTH:
        raise JsonError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            _walk(key, depth, max_string)
            _walk(item, depth + 1, max_string)
    elif isinstance(value, list):
        for item in value:
            _walk(item, depth + 1, max_string)
    elif isinstance(value, str):
        if len(value) > max_string:
            raise JsonError(f"string of {len(value)} characters, the limit is {max_string}")
        # json.loads lets lone surrogates through; printing or storing such a string fails later
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise JsonError("string with a lone surrogate")


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}

_LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "enum": (lambda v, a: any(v == x and type(v) is type(x) for x in a), "is not one of"),
    "const": (lambda v, a: v == a, "is not"),
    "minimum": (lambda v, a: not _TYPES["number"](v) or v >= a, "is below"),
    "maximum": (lambda v, a: not _TYPES["number"](v) or v <= a, "is above"),
    "exclusiveMinimum": (lambda v, a: not _TYPES["number"](v) or v > a, "is not above"),
    "minLength": (lambda v, a: not isinstance(v, str) or len(v) >= a, "is shorter than"),
    "maxLength": (lambda v, a: not isinstance(v, str) or len(v) <= a, "is longer than"),
    "pattern": (lambda v, a: not isinstance(v, str) or re.fullmatch(a, v) is not None, "does not match"),
    "minItems": (lambda v, a: not isinstance(v, list) or len(v) >= a, "has fewer entries than"),
    "maxItems": (lambda v, a: not isinstance(v, list) or len(v) <= a, "has more entries than"),
    "minProperties": (lambda v, a: not isinstance(v, dict) or len(v) >= a, "has fewer keys than"),
    "maxProperties": (lambda v, a: not isinstance(v, dict) or len(v) <= a, "has more keys than"),
}

_STRUCTURE = {"$ref", "type", "properties", "required", "additionalProperties", "propertyNames", "items"}
_NOTES = {"$schema", "$id", "$defs", "title", "description"}


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """What ``schema`` refuses in ``value``, one line each. An unknown schema keyword is a KeyError."""
    where = path or "top level"
    if unknown := set(schema) - set(_LIMITS) - _STRUCTURE - _NOTES:
        raise KeyError(f"schema keyword {sorted(unknown)} is not implemented")
    if "$ref" in schema:
        yield from problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, path)
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_TYPES[k](value) for k in kinds):
        yield f"{where}: {_short(value)} is not {' or '.join(kinds)}"
        return
    for keyword, (holds, text) in _LIMITS.items():
        if keyword in schema and not holds(value, schema[keyword]):
            yield f"{where}: {_short(value)} {text} {_short(schema[keyword])}"
    if isinstance(value, dict):
        yield from _object_problems(value, schema, root, path)
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            yield from problems(item, schema["items"], root, f"{path}[{i}]")


def _object_problems(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{path or 'top level'}: key {key!r} is missing"
    for key, item in value.items():
        at = f"{path}.{_short(key, quote=False)}" if path else _short(key, quote=False)
        if "propertyNames" in schema:
            yield from problems(key, schema["propertyNames"], root, f"{at} (key)")
        if key in known:
            yield from problems(item, known[key], root, at)
        elif rest is False:
            yield f"{at}: unknown key"
        elif isinstance(rest, dict):
            yield from problems(item, rest, root, at)


def _short(value: Any, quote: bool = True) -> str:
    text = repr(value) if quote else str(value).encode("unicode_escape").decode()
    return text if len(text) <= 60 else text[:57] + "..."
