"""An edit that makes kernels wrong: where, what, and with which dims and knobs it matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

Live = Callable[[SimpleNamespace], bool]
"""Of the dims, the knobs and the constants of a kernel, by name: whether some call of these dims comes out wrong."""

TILE = "off-by-one tile"
MASK = "missing mask"
TAIL = "dropped tail"
STALE = "output not written"
ORDER = "depends on the order of programs"
ADDED = "adds to what is there"
PLACE = "wrong place"
PAGE = "wrong page"
TIE = "order of ties"
SPLIT = "split of work"
SCALE = "wrong factor"
STATE = "running state lost"


@dataclass(frozen=True, eq=False)
class Edit:
    """``changes``: (function, old text, new text)."""

    kind: str
    name: str
    kernels: tuple[str, ...]
    changes: tuple[tuple[str, str, str], ...]
    live: Live = lambda n: True


def edit(kernels: str, function: str, kind: str, name: str, old: str, new: str, live: Live = lambda n: True) -> Edit:
    return Edit(kind, name, tuple(kernels.split()), ((function, old, new),), live)


def beyond(size: str, block: str) -> Live:
    """The last block is not full."""
    return lambda n: getattr(n, size) % getattr(n, block) != 0


def several(size: str, block: str) -> Live:
    """There is more than one block."""
    return lambda n: getattr(n, size) > getattr(n, block)
