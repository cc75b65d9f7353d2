"""Records from several files, the shipped ones and the user's, and which of them a build may use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dsv2_compile.autotune import lines
from dsv2_compile.autotune.record import PROVENANCES, Key, Record, key_of, launch_digest, ratio
from dsv2_compile.autotune.schema import parse
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.cache_folder import cache_folder
from dsv2_compile.kernels.gpu.kernel import Call
from dsv2_compile.targets import Target

SHIPPED = Path(__file__).resolve().parent.parent / "artifacts" / "tuning"
FOLDER = "tuning"
FARTHEST = 2.0
"""Sizes that a record may be used at are within this factor of those it was made at."""


@dataclass
class Base:
    """``stale``: records that were met but made for another source, compiler or meaning of a configuration."""

    records: dict[Key, Record] = field(default_factory=dict)
    damaged: int = 0
    refused: list[str] = field(default_factory=list)
    stale: set[Key] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Measured beats predicted, and the newer what is as good."""
        known = self.records.get(record.key)
        if known is None or _rank(record) >= _rank(known):
            self.records[record.key] = record

    def find(self, call: Call, target: Target) -> Record | None:
        """The record for ``call``, or the one for the nearest sizes that are near enough."""
        compilers = toolchain(target)
        wanted = key_of(call, target.name, compilers.triton, compilers.ptxas)
        exact = self.records.get(wanted)
        near = [exact] if exact else sorted(self._near(wanted), key=lambda r: _distance(r.key, wanted))
        for record in near:
            if record.launch == launch_digest(at(call, record.key), dict(record.config)):
                return record
            self.stale.add(record.key)
        blank = replace(wanted, source="", triton="", ptxas="")
        self.stale |= {k for k in self.records if replace(k, source="", triton="", ptxas="") == blank and k != wanted}
        return None

    def _near(self, wanted: Key) -> Iterable[Record]:
        for key, record in self.records.items():
            if replace(key, sizes=wanted.sizes) == wanted and _distance(key, wanted)[0] <= FARTHEST:
                yield record


def at(call: Call, key: Key) -> Call:
    return replace(call, sizes=tuple(sorted({**dict(call.sizes), **dict(key.sizes)}.items())))


def _distance(key: Key, wanted: Key) -> tuple[float, list[int]]:
    """The larger sizes first, of those as far."""
    return ratio(dict(key.sizes), dict(wanted.sizes)), [-n for _, n in key.sizes]


def _rank(record: Record) -> tuple[int, int]:
    return -PROVENANCES.index(record.provenance), record.created


def files_for(target: Target) -> list[Path]:
    """The shipped file of ``target`` and the user's."""
    return [SHIPPED / f"{target.name}.jsonl", own_file(target)]


def own_file(target: Target) -> Path:
    return cache_folder(FOLDER) / f"{target.name}.jsonl"


def load(paths: Iterable[Path]) -> Base:
    """What is sound in ``paths``."""
    base = Base()
    for path in paths:
        found = lines.read(path)
        base.damaged += len(found.damaged)
        for value in found.objects:
            record = parse(value)
            if isinstance(record, Record):
                base.add(record)
            else:
                base.refused.append(f"{path.name}: {record}")
    return base


def save(path: Path, records: Iterable[Record]) -> None:
    lines.append(path, [r.to_json() for r in records])
