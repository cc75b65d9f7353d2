"""Trial logs as a report reads them: anybody may have written them, so what is not as it should be is left out and
counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from dsv2_compile.autotune import lines
from dsv2_compile.autotune.log import SCHEMA
from dsv2_compile.autotune.record import MEASURED, PREDICTED, Key
from dsv2_compile.autotune.schema import MOST_MICROSECONDS, key_of_json
from dsv2_compile.autotune.trial import OK, STATUSES

_KNOBS, _FACTS, _NAME, _TEXT = 24, 12, 40, 240

Pairs = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial. ``judge``: who tried it; ``microseconds``: None unless ``status`` is OK. Texts are printable."""

    key: Key
    what: str
    judge: str
    bound: float
    config: Pairs
    default: bool
    status: str
    microseconds: float | None
    reason: str
    seconds: float
    created: int
    facts: tuple[tuple[str, str], ...]

    @property
    def provenance(self) -> str:
        """Predicted, unless it is said to be measured on something."""
        return MEASURED if self.judge.startswith(f"{MEASURED} on ") else PREDICTED


@dataclass
class Trials:
    """``entries``: as they were made. ``damaged``: lines that are torn or changed; ``refused``: sound lines that are no
    trials, by why."""

    entries: list[Entry] = field(default_factory=list)
    damaged: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def read(paths: Iterable[Path]) -> Trials:
    """What is sound in ``paths``; of files that do not exist, nothing."""
    out = Trials()
    keys: dict[str, Key] = {}
    for path in paths:
        found = lines.read(path)
        out.damaged += len(found.damaged)
        for value in found.objects:
            try:
                out.entries.append(_entry(value, keys))
            except (KeyError, TypeError, ValueError) as e:
                out.refused[text(str(e)) if type(e) is ValueError else "a field is missing or of another type"] += 1
    out.entries.sort(key=lambda e: e.created)
    return out


def text(value: Any, most: int = _TEXT) -> str:
    """``value`` on one line of at most ``most`` characters, all of them printable."""
    if not isinstance(value, str):
        raise TypeError
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(value[: 2 * most].split()))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _entry(value: Mapping[str, Any], keys: dict[str, Key]) -> Entry:
    if value["schema"] != SCHEMA:
        raise ValueError(f"schema {text(str(value['schema']), _NAME)}, this version reads {SCHEMA}")
    if value["status"] not in STATUSES:
        raise ValueError("an unknown status")
    spelled = json.dumps(value["key"], sort_keys=True)
    if spelled not in keys:
        keys[spelled] = key_of_json(value["key"])
    return Entry(
        key=keys[spelled],
        what=text(value["what"]),
        judge=text(value["judge"]),
        bound=_within(value["bound"]),
        config=_config(value["config"]),
        default=value["default"] is True,
        status=value["status"],
        microseconds=_within(value["microseconds"]) if value["status"] == OK else None,
        reason=text(value["reason"]),
        seconds=_number(value["seconds"]),
        created=int(_number(value["created"])),
        facts=_facts(value["facts"]),
    )


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value) or not 0 <= value < 1 << 40:
        raise ValueError("a number out of bounds")
    return float(value)


def _within(value: Any) -> float:
    if not 0 < _number(value) <= MOST_MICROSECONDS:
        raise ValueError("a time out of bounds")
    return float(value)


def _config(value: Mapping[str, Any]) -> Pairs:
    pairs = tuple(sorted(value.items()))
    if len(pairs) > _KNOBS or any(len(k) > _NAME or type(v) is not int or abs(v) >= 1 << 40 for k, v in pairs):
        raise ValueError("a configuration out of bounds")
    return tuple((text(k), v) for k, v in pairs)


def _facts(value: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Those that are one number or word, as text."""
    plain = [(k, v) for k, v in value.items() if isinstance(v, str | int | float)][:_FACTS]
    return tuple((text(k, _NAME), text(f"{v:.4g}" if isinstance(v, float) else str(v), _NAME)) for k, v in plain)
