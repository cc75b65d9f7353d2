"""Records that somebody else wrote: numbers and names within bounds, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

from dsv2_compile.autotune.record import MEASURED, PROVENANCES, SCHEMA, Key, Record
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.targets import GPUS

MOST_MICROSECONDS = 1e8
_ENTRIES, _LETTERS, _NUMBER = 64, 200, 1 << 40


def parse(value: Mapping[str, Any]) -> Record | str:
    """The record, or why ``value`` is none that can be used."""
    try:
        return _record(value)
    except _Wrong as e:
        return str(e)


class _Wrong(ValueError):
    pass


def key_of_json(value: Any) -> Key:
    """ValueError if it is none."""
    return _key(_mapping(value))


def _record(value: Mapping[str, Any]) -> Record:
    if value.get("schema") != SCHEMA:
        raise _Wrong(f"schema {str(value.get('schema'))[:40]!r}, this version reads {SCHEMA}")
    rest = {k: v for k, v in value.items() if k != "schema"}
    key = _key(_mapping(rest.pop("key", None)))
    record = Record(
        key=key,
        config=_config(key.kernel, _mapping(rest.pop("config", None))),
        provenance=_text(rest.pop("provenance", None)),
        device=_text(rest.pop("device", None)),
        launch=_text(rest.pop("launch", None)),
        checks=tuple(map(_text, _list(rest.pop("checks", None)))),
        **{name: _time(rest.pop(name, None)) for name in ("microseconds", "default_microseconds", "bound")},
        **{name: _count(rest.pop(name, None)) for name in ("model", "trials", "created")},
    )
    if rest:
        raise _Wrong(f"unknown field {min(rest)[:40]!r}")
    if record.provenance not in PROVENANCES or (record.provenance == MEASURED) != bool(record.device):
        raise _Wrong("a record is measured and names its device, or predicted and does not")
    return record


def _key(value: Mapping[str, Any]) -> Key:
    if value.keys() != {f.name for f in fields(Key)}:
        raise _Wrong("the key has other fields")
    kernel, target = _text(value["kernel"]), _text(value["target"])
    if kernel not in KERNELS or target not in GPUS:
        raise _Wrong(f"unknown kernel or target: {kernel[:40]!r}, {target[:40]!r}")
    sizes = _mapping(value["sizes"])
    if sizes.keys() != set(KERNELS[kernel].shape):
        raise _Wrong(f"the sizes of {kernel} are {', '.join(KERNELS[kernel].shape)}")
    dims = _mapping(value["dims"])
    for dim in dims.values():
        if type(dim) not in (int, float, bool) or not abs(dim) <= _NUMBER:
            raise _Wrong("a dim that is no number within bounds")
    text = {name: _text(value[name]) for name in ("source", "dtype", "triton", "ptxas")}
    counted = tuple(sorted((n, _count(v)) for n, v in sizes.items()))
    return Key(kernel=kernel, target=target, dims=tuple(sorted(dims.items())), sizes=counted, **text)


def _config(kernel: str, config: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Every knob within what its space spans: a default may lie between two values of the space."""
    space = KERNELS[kernel].space
    if config.keys() != space.keys():
        raise _Wrong(f"the knobs of {kernel} are {', '.join(space)}")
    for knob, choice in config.items():
        low, high = min(space[knob]), max(space[knob])
        if type(choice) is not int or not low <= choice <= high:
            raise _Wrong(f"{knob} of {kernel} is not within {low} to {high}")
    return tuple(sorted(config.items()))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) > _ENTRIES or any(len(k) > _LETTERS for k in value):
        raise _Wrong("an object is missing or too large")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _ENTRIES:
        raise _Wrong("a list is missing or too long")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LETTERS or not value.isprintable():
        raise _Wrong("a text is missing, too long or not printable")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _NUMBER:
        raise _Wrong("a count is missing or out of bounds")
    return value


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value) or not 0 < value <= MOST_MICROSECONDS:
        raise _Wrong("a time is missing or out of bounds")
    return float(value)
