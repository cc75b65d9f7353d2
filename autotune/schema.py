"""Records that somebody else wrote: numbers and names within bounds, or refused.

record.schema.json is the same as a JSON Schema, but for what only the kernels of this version know: their names, their
knobs and what these may be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from dsv2_compile.autotune.record import MEASURED, PROVENANCES, SCHEMA, Key, Record
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.targets import GPUS

SIMULATED = "SIMULATED"
"""What the names of devices begin with that tests make up."""
LEAST_MICROSECONDS, MOST_MICROSECONDS = 1e-3, 1e8
"""Of a call."""
DTYPES = ("bf16", "fp16", "fp32")
COUNTS = ("SPLIT_K", "GROUP_M", "num_stages")
"""Knobs that are numbers of something: any will do. Others are extents of tiles and threads."""
_ENTRIES, _LETTERS, _NUMBER = 64, 200, 1 << 40
_NAME, _TEXT = re.compile(r"[A-Za-z][A-Za-z0-9_]*"), re.compile(r"[ -~]*")
_SCHEMA = re.compile(r"dsv2/tuning/([1-9][0-9]{0,5})")
_OURS = int(SCHEMA.rsplit("/")[-1])


def newer(value: Mapping[str, Any]) -> bool:
    """A record of a later version of this format."""
    schema = value.get("schema")
    found = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    return found is not None and int(found[1]) > _OURS


def parse(value: Mapping[str, Any]) -> Record | str:
    """The record, or why ``value`` is none that can be used."""
    try:
        return _record(value)
    except ValueError as e:
        return str(e)


def key_of_json(value: Any) -> Key:
    """Raises ValueError if it is no key that this version can have."""
    key = _object(value)
    names = tuple(f.name for f in fields(Key))
    _same(key, names, "the key")
    text = {name: _some(key[name]) for name in ("kernel", "source", "target", "dtype", "triton", "ptxas")}
    for name, known in (("kernel", KERNELS), ("target", GPUS), ("dtype", DTYPES)):
        if text[name] not in known:
            raise ValueError(f"unknown {name} {text[name][:40]!r}")
    sizes, dims = _object(key["sizes"]), _object(key["dims"])
    _same(sizes, KERNELS[text["kernel"]].shape, f"the sizes of {text['kernel']}")
    return Key(
        dims=tuple(sorted((n, _dim(v)) for n, v in dims.items())),
        sizes=tuple(sorted((n, _power(v)) for n, v in sizes.items())),
        **text,
    )


def _record(value: Mapping[str, Any]) -> Record:
    if value.get("schema") != SCHEMA:
        raise ValueError(f"schema {str(value.get('schema'))[:40]!r}, this version reads {SCHEMA}")
    _same(value, ("schema", *_FIELDS), "a record")
    record = Record(**{name: check(value[name]) for name, check in _FIELDS.items()})
    check_config(record.key.kernel, dict(record.config))
    if record.provenance not in PROVENANCES or (record.provenance == MEASURED) != bool(record.device):
        raise ValueError("a record is measured and names its device, or predicted and does not")
    if record.device.upper().startswith(SIMULATED):
        raise ValueError("a record of a simulated device is none of a GPU")
    return record


def check_config(kernel: str, config: Mapping[str, int]) -> None:
    """Raises ValueError for knobs that ``kernel`` does not have and for values it cannot take.

    Values are at most the largest of the knob's space. They may be less than the least, as defaults for narrow dims
    are, but where the space is of powers of two they are one, unless the knob is a count.
    """
    space = KERNELS[kernel].space
    _same(config, space, f"the knobs of {kernel}")
    for knob, value in config.items():
        values = space[knob]
        powers = knob not in COUNTS and all(_is_power(v) for v in values)
        if not min(1, *values) <= value <= max(values) or (powers and not _is_power(value)):
            what = "power of two" if powers else "number"
            raise ValueError(f"{knob} of {kernel} is no {what} up to {max(values)}")


def _is_power(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def _same(value: Mapping[str, Any], names: Any, what: str) -> None:
    wrong = value.keys() ^ set(names)
    if wrong:
        raise ValueError(f"{what}: {min(wrong)[:40]!r} is {'missing' if min(wrong) in names else 'unknown'}")


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) > _ENTRIES:
        raise ValueError("an object is missing or too large")
    if not all(len(k) <= _LETTERS and _NAME.fullmatch(k) for k in value):
        raise ValueError("a name that is none")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LETTERS or not _TEXT.fullmatch(value):
        raise ValueError("a text is missing, too long or not printable ASCII")
    return value


def _some(value: Any) -> str:
    if not _text(value):
        raise ValueError("a text is empty")
    return _text(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _ENTRIES:
        raise ValueError("a list is missing or too long")
    return tuple(map(_some, value))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _NUMBER:
        raise ValueError("a count is missing or out of bounds")
    return value


def _power(value: Any) -> int:
    if not _is_power(_count(value)):
        raise ValueError("a size is no power of two")
    return _count(value)


def _dim(value: Any) -> int | float | bool:
    if type(value) not in (int, float, bool) or not abs(value) <= _NUMBER:
        raise ValueError("a dim is no number within bounds")
    found: int | float | bool = value
    return found


def _number(low: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= MOST_MICROSECONDS:
            raise ValueError("a time is missing or out of bounds")
        return float(value)

    return check


def _pairs(value: Any) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((n, _count(v)) for n, v in _object(value).items()))


_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "key": key_of_json,
    "config": _pairs,
    "provenance": _text,
    "microseconds": _number(LEAST_MICROSECONDS),
    "default_microseconds": _number(LEAST_MICROSECONDS),
    "bound": _number(0.0),
    "launch": _some,
    "model": _count,
    "device": _text,
    "checks": _texts,
    "trials": _count,
    "created": _count,
}
