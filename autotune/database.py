"""What can be done with files of tuning records: look into them, merge, export, and clear out what is of no use."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv2_compile.autotune import lines
from dsv2_compile.autotune.base import Base, check_size, files_for, own_file, why_stale
from dsv2_compile.autotune.lock import Told, locked
from dsv2_compile.autotune.record import Record
from dsv2_compile.autotune.schema import newer, parse
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.errors import IncompatibleError, UsageError
from dsv2_compile.targets import GPUS, target

DAY = 86400
"""Seconds that the clock of whoever made a record may be ahead."""
ASIDE = ".damaged"
"""Ending of the file that lines nobody can use are moved to."""


@dataclass(frozen=True)
class Entry:
    """A line of a file: its ``record``, or ``wrong``: why there is none. ``kind``: one of KINDS."""

    line: lines.Line
    kind: str
    record: Record | None = None
    wrong: str = ""


SOUND, DAMAGED, REFUSED, NEWER = "sound", "damaged", "refused", "newer"
KINDS = (SOUND, DAMAGED, REFUSED, NEWER)


@dataclass(frozen=True)
class Contents:
    """What ``path`` holds, in its order. ``damaged``, ``newer``: numbers of lines. ``refused``: number and reason."""

    path: Path
    records: tuple[Record, ...]
    damaged: tuple[int, ...]
    refused: tuple[tuple[int, str], ...]
    newer: tuple[int, ...]


@dataclass(frozen=True)
class Shown:
    """A record, the file it is from, and what has changed since it was made: see `why_stale`."""

    record: Record
    path: Path
    stale: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """Records of other files in ``path``: of calls it had none for, better than those it had, no better, and such
    whose configurations mean something else here (``stale``)."""

    path: Path
    added: int
    better: int
    known: int
    stale: int


@dataclass(frozen=True)
class Collected:
    """What was kept in ``path``, what dropped by reason, and how many lines were moved to ``aside``."""

    path: Path
    kept: int
    dropped: Mapping[str, int]
    aside: Path
    moved: int


def entries(path: Path, now: float | None = None) -> Iterator[Entry]:
    """``now``: refuse records that were made later than that; they would be the newest for ever."""
    check_size(path)
    for line in lines.scan(path):
        if line.value is None:
            yield Entry(line, DAMAGED)
        elif newer(line.value):
            yield Entry(line, NEWER)
        else:
            found = parse(line.value)
            if isinstance(found, Record) and now is not None and found.created > now + DAY:
                found = f"made in the future, {found.created} seconds after 1970"
            yield Entry(line, REFUSED, wrong=found) if isinstance(found, str) else Entry(line, SOUND, found)


def examine(path: Path, now: float | None = None) -> Contents:
    """Raises UsageError if ``path`` is no file or cannot be read."""
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UsageError(f"{path} is not a file that can be read", "Give a file of tuning records.")
    by_kind: dict[str, dict[int, Entry]] = {kind: {} for kind in KINDS}
    for entry in entries(path, now):
        by_kind[entry.kind][entry.line.number] = entry
    return Contents(
        path=path,
        records=tuple(e.record for e in by_kind[SOUND].values() if e.record),
        damaged=tuple(by_kind[DAMAGED]),
        refused=tuple((n, e.wrong) for n, e in by_kind[REFUSED].items()),
        newer=tuple(by_kind[NEWER]),
    )


def validate(paths: Iterable[Path]) -> list[Contents]:
    return [examine(path, time.time()) for path in paths]


def own_files() -> list[Path]:
    """Those of this user that there are."""
    return [p for gpu in GPUS.values() for p in files_for(gpu)[1:] if p.is_file()]


def all_files() -> list[Path]:
    """The shipped ones first."""
    return [p for gpu in GPUS.values() for p in files_for(gpu) if p.is_file()]


def show(
    paths: Iterable[Path], gpu: str | None = None, kernel: str | None = None
) -> tuple[list[Shown], list[Contents]]:
    """The best record of every key in all of ``paths``, sorted, and what else is there."""
    base, origin, contents = Base(), {}, [examine(p) for p in paths]
    for found in contents:
        for record in found.records:
            if matches(record, gpu, kernel) and (base.add(record) or record.key not in origin):
                origin[record.key] = found.path
    best = {**base.stale, **base.records}
    return [Shown(r, origin[r.key], stale(r)) for r in ordered(best.values())], contents


def matches(record: Record, gpu: str | None, kernel: str | None) -> bool:
    return gpu in (None, record.key.target) and kernel in (None, record.key.kernel)


def stale(record: Record) -> tuple[str, ...]:
    return why_stale(record, toolchain(target(record.key.target)))


def ordered(records: Iterable[Record]) -> list[Record]:
    """The same order whatever order they were found in."""
    return sorted(records, key=lambda r: (r.key.target, r.key.kernel, repr(r.key), r.created))


def merge(
    paths: Sequence[Path], into: Path | None = None, told: Told | None = None, wait: bool = True
) -> tuple[list[Merged], list[Contents]]:
    """The best records of ``paths`` into ``into``, or into this user's file of each target. All of them are read
    before anything is written, a file is replaced as a whole, and what it holds stays in it.

    Raises UsageError for what is no file, IncompatibleError for records of a later version on either side.
    """
    read = validate(paths)
    best = Base()
    for record in (r for contents in read for r in contents.records):
        best.add(record)
    wanted: dict[Path, list[Record]] = {}
    for record in ordered([*best.records.values(), *best.stale.values()]):
        wanted.setdefault((into or own_file(target(record.key.target))).resolve(), []).append(record)
    refuse_newer([*read, *(examine(p) for p in wanted if p.exists())])
    return [_merge(path, records, told, wait) for path, records in wanted.items()], read


def _merge(path: Path, records: list[Record], told: Told | None, wait: bool) -> Merged:
    _check_writable(path)
    counts: Counter[str] = Counter()
    with locked(path, told, wait):
        base, won = Base(), []
        if path.exists():
            refuse_newer([contents := examine(path)])
            for record in contents.records:
                base.add(record)
        for record in records:
            had = record.key in base.records
            if base.add(record):
                won.append(record)
                counts["better" if had else "added"] += 1
            else:
                counts["stale" if record.key in base.stale else "known"] += 1
        if won:
            lines.replace(path, _with(path, won))
    return Merged(path, **{name: counts[name] for name in ("added", "better", "known", "stale")})


def _with(path: Path, records: list[Record]) -> Iterator[bytes]:
    """What ``path`` holds, to the byte, and then ``records``."""
    last = b"\n"
    for line in lines.scan(path):
        yield (last := line.raw)
    if not last.endswith(b"\n"):
        yield b"\n"
    yield from (lines.encode(r.to_json()) for r in records)


def _check_writable(path: Path) -> None:
    """Raises UsageError if there can be no file ``path``."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path.parent} is not a folder that can be written", "Choose another, or make it one.")


def refuse_newer(read: Iterable[Contents]) -> None:
    """Raises IncompatibleError."""
    problems = [f"{c.path}: line {n}" for c in read for n in c.newer]
    if problems:
        raise IncompatibleError(
            "there are tuning records of a later version of this program, which are left as they are",
            "Use that version, or other files.",
            problems,
        )


def export(paths: Iterable[Path], out: Path, gpu: str | None = None, kernel: str | None = None) -> int:
    """Write the best records of ``paths`` that are of use here to a new file; their number.
    Raises UsageError if ``out`` is there, or nothing to be written."""
    if out.exists():
        raise UsageError(f"{out} is there already", "Choose another name, or merge into it.")
    _check_writable(out.resolve())
    found = [s.record for s in show(paths, gpu, kernel)[0] if not s.stale]
    if not found:
        raise UsageError("there are no records to export", "dsv2-compile tune makes some.")
    lines.replace(out, (lines.encode(r.to_json()) for r in found))
    return len(found)


def collect(path: Path, dry_run: bool = False, told: Told | None = None, wait: bool = True) -> Collected:
    """Drop what is stale or superseded from ``path`` and move aside what is damaged or refused; ``dry_run`` only
    counts. Raises UsageError if it is no file, IncompatibleError for records of a later version."""
    path = path.resolve()
    refuse_newer([examine(path)])
    if dry_run:
        return _sorted(path)[0]
    _check_writable(path)
    with locked(path, told, wait):
        refuse_newer([examine(path)])
        lines.clear_parts(path)
        collected, kept, aside = _sorted(path)
        if aside:
            lines.append_raw(collected.aside, b"".join(aside))
        if aside or collected.dropped:
            lines.replace(path, kept)
    return collected


def _sorted(path: Path) -> tuple[Collected, list[bytes], list[bytes]]:
    """The lines to keep and those to move aside."""
    found, base = list(entries(path)), Base()
    for entry in found:
        if entry.record:
            base.add(entry.record)
    kept, aside, dropped = [], [], Counter[str]()
    moved = set()
    for entry in found:
        if entry.record is None:
            aside.append(entry.line.raw)
            moved.add(entry.line.number)
        elif changed := stale(entry.record):
            dropped[f"stale: {', '.join(changed)}"] += 1
        elif base.records[entry.record.key] is not entry.record:
            dropped["superseded"] += 1
        else:
            kept.append(entry.line.raw.rstrip(b"\n") + b"\n")
    result = Collected(path, len(kept), dropped, path.with_name(path.name + ASIDE), len(moved))
    return result, kept, aside
