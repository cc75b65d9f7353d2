"""Files of JSON lines that many processes append to and none can spoil.

A line holds one object and, as its last key, a hash of it. A line that is torn or changed is counted and left out,
never believed. Appends are made under a lock of the operating system, which ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 16
"""Of a line; a longer one is damaged."""
_SEAL = "check"
_DIGITS = 16


@dataclass(frozen=True)
class Lines:
    """``objects`` in the order of the file; ``damaged``: numbers, from 1 on, of the lines that are no objects."""

    objects: tuple[dict[str, Any], ...]
    damaged: tuple[int, ...]


def encode(value: Mapping[str, Any]) -> bytes:
    """The line. ValueError for NaN and infinities, and for what would be too long."""
    body = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    seal = hashlib.sha256(body.encode()).hexdigest()[:_DIGITS]
    line = f'{body[:-1]}{"," if value else ""}"{_SEAL}":"{seal}"}}\n'.encode()
    if len(line) > MOST_BYTES:
        raise ValueError(f"a line of {len(line)} bytes, the limit is {MOST_BYTES}")
    return line


def decode(line: bytes) -> dict[str, Any] | None:
    """The object, or None if ``line`` is not one that `encode` has made."""
    try:
        value = json.loads(line)
        seal = value.pop(_SEAL)
        return value if encode(value).rstrip() == line.rstrip(b"\n") and isinstance(seal, str) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read(path: Path) -> Lines:
    """What is in ``path``; nothing if it does not exist."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Lines((), ())
    numbered = [(n, decode(line) if len(line) < MOST_BYTES else None) for n, line in enumerate(lines, 1) if line]
    return Lines(tuple(v for _, v in numbered if v is not None), tuple(n for n, v in numbered if v is None))


def append(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Add lines at the end and see them on disk. What an interrupted writer left there stays a line of its own."""
    data = b"".join(map(encode, values))
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path), open(path, "a+b") as f:
        end = f.seek(0, os.SEEK_END)
        if end:
            f.seek(end - 1)
            if f.read(1) != b"\n":
                data = b"\n" + data
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process appends to ``path`` or replaces it."""
    with open(path.with_name(path.name + ".lock"), "a+b") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
