"""Files of JSON lines that many processes append to and none can spoil.

A line holds one object and, as its last key, a hash of it. A line that is torn or changed is counted and left out,
never believed. Files are written under a lock of the operating system, which ends with the process that holds it:
nothing has to be taken over from one that died.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from dsv2_compile.autotune.lock import Told, locked, opener

MOST_BYTES = 1 << 16
"""Of a line; a longer one is damaged."""
PART = ".part"
"""Ending of a file that `replace` has begun, which is left if the process is killed."""
_SEAL = "check"
_DIGITS = 16


@dataclass(frozen=True)
class Lines:
    """``objects`` in the order of the file; ``damaged``: numbers, from 1 on, of the lines that are no objects."""

    objects: tuple[dict[str, Any], ...]
    damaged: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """``value``: None if damaged. ``raw`` with its end; of a longer line than may be, at most MOST_BYTES of it."""

    number: int
    raw: bytes
    value: dict[str, Any] | None


def encode(value: Mapping[str, Any]) -> bytes:
    """The line. ValueError for NaN and infinities, and for what would be too long."""
    body = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    seal = hashlib.sha256(body.encode()).hexdigest()[:_DIGITS]
    line = f'{body[:-1]}{"," if value else ""}"{_SEAL}":"{seal}"}}\n'.encode()
    if len(line) > MOST_BYTES:
        raise ValueError(f"a line of {len(line)} bytes, the limit is {MOST_BYTES}")
    return line


def decode(line: bytes) -> dict[str, Any] | None:
    """The object, or None if ``line`` is not, to the byte, one that `encode` has made: a key that stands twice, a
    spelling of its own, NaN."""
    try:
        value = json.loads(line)
        del value[_SEAL]
        return value if encode(value).rstrip() == line.rstrip(b"\n") else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def scan(path: Path) -> Iterator[Line]:
    """The lines of ``path``, none if it does not exist, in bounded memory; empty ones are left out. A line that is
    too long comes in several pieces of one number."""
    number, whole = 1, True
    with suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as f:
        while raw := f.readline(MOST_BYTES):
            ends = raw.endswith(b"\n")
            if raw != b"\n" or not whole:
                value = decode(raw) if whole and (ends or len(raw) < MOST_BYTES) else None
                yield Line(number, raw, value)
            number, whole = number + ends, ends


def read(path: Path) -> Lines:
    """What is in ``path``; nothing if it does not exist."""
    objects: list[dict[str, Any]] = []
    damaged: dict[int, None] = {}
    for line in scan(path):
        if line.value is None:
            damaged[line.number] = None
        else:
            objects.append(line.value)
    return Lines(tuple(objects), tuple(damaged))


def append(path: Path, values: Iterable[Mapping[str, Any]], told: Told | None = None, wait: bool = True) -> None:
    """Add lines at the end and see them on disk. What an interrupted writer left there stays a line of its own.
    ``told`` and ``wait`` as in `locked`. OSError leaves the file as it was."""
    data = b"".join(map(encode, values))
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, told, wait):
        append_raw(path, data)


def append_raw(path: Path, data: bytes) -> None:
    """Under `locked`: add ``data`` on a line of its own."""
    with open(path, "a+b", buffering=0, opener=opener) as f:
        end = f.seek(0, os.SEEK_END)
        if end:
            f.seek(end - 1)
            if f.read(1) != b"\n":
                data = b"\n" + data
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[f.write(rest) :]
            os.fsync(f.fileno())
        except OSError:
            with suppress(OSError):
                f.truncate(end)
            raise


def replace(path: Path, lines: Iterable[bytes]) -> None:
    """Under `locked`: make ``lines`` all that ``path`` holds. Whatever happens, it is whole: as before, or after."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False) as f:
        try:
            f.writelines(lines)
            os.fchmod(f.fileno(), mode)
            f.flush()
            os.fsync(f.fileno())
            os.replace(f.name, path)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise
    _sync(path.parent)


def clear_parts(path: Path) -> None:
    """Under `locked`: remove what interrupted calls of `replace` have left."""
    for left in path.parent.glob(f".{escape(path.name)}.*{PART}"):
        left.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """See the names in ``folder`` on disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
