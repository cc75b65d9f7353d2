"""Records from several files, the shipped ones and the user's, and which of them a build may use."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import dsv2_compile
from dsv2_compile.autotune import lines
from dsv2_compile.autotune.lock import Told
from dsv2_compile.autotune.record import PREDICTED, Key, Record, key_of, launch_digest, ratio
from dsv2_compile.autotune.schema import parse
from dsv2_compile.backends.cuda.toolchain import Toolchain, toolchain
from dsv2_compile.cache_folder import check_own, known_folders, writable_folder
from dsv2_compile.errors import IntegrityError
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config
from dsv2_compile.targets import Target

SHIPPED = Path(dsv2_compile.__file__).resolve().parent / "tuning_records"
"""A link to artifacts/tuning/ in the repository, a folder in a wheel."""
FOLDER = "tuning"
MOST_BYTES = 1 << 28
"""Of a file."""
FARTHEST = 2.0
"""Sizes that a record may be used at are within this factor of those it was made at."""


@dataclass
class Base:
    """``records``: the best of every key, of those that mean here what they meant where they were made. ``stale``:
    what was met of the others: made for another source, compiler or meaning of a configuration, and never used."""

    records: dict[Key, Record] = field(default_factory=dict)
    damaged: int = 0
    refused: list[str] = field(default_factory=list)
    stale: dict[Key, Record] = field(default_factory=dict)
    _sizes: dict[Key, list[Key]] = field(default_factory=dict)
    """By key without sizes."""
    _builds: dict[Key, list[Key]] = field(default_factory=dict)
    """By key without sizes, source and compilers."""
    _found: dict[tuple[Call, str], Record | None] = field(default_factory=dict)

    def add(self, record: Record) -> bool:
        """Whether it is now the one for its key: measured beats predicted, see `_rank`."""
        key = record.key
        if not means_the_same(record):
            self.stale.setdefault(key, record)
            return False
        known = self.records.get(key)
        if known == record or (known is not None and _rank(record) < _rank(known)):
            return False
        self.records[key] = record
        self.stale.pop(key, None)
        self._found.clear()
        if known is None:
            self._sizes.setdefault(_any_size(key), []).append(key)
            self._builds.setdefault(_any_build(key), []).append(key)
        return True

    def find(self, call: Call, target: Target) -> Record | None:
        """The record for ``call``, or the one for the nearest sizes that are near enough."""
        asked = call, target.name
        if asked not in self._found:
            compilers = toolchain(target)
            self._found[asked] = self._find(key_of(call, target.name, compilers.triton, compilers.ptxas))
        return self._found[asked]

    def _find(self, wanted: Key) -> Record | None:
        if wanted in self.records:
            return self.records[wanted]
        near = [k for k in self._sizes.get(_any_size(wanted), ()) if _distance(k, wanted)[0] <= FARTHEST]
        if near:
            return self.records[min(near, key=lambda k: _distance(k, wanted))]
        self.stale |= {k: self.records[k] for k in self._others(wanted)}
        return None

    def _others(self, wanted: Key) -> list[Key]:
        """Of other builds of the same."""
        found = self._builds.get(_any_build(wanted), ())
        return [k for k in found if _any_size(k) != _any_size(wanted) and _distance(k, wanted)[0] <= FARTHEST]

    def worth_trying(self, call: Call, target: Target) -> list[Config]:
        """Configurations that were the best for ``call`` under another source or compiler, and those of near sizes,
        the nearest first: none may be used before it was judged again."""
        compilers = toolchain(target)
        wanted = key_of(call, target.name, compilers.triton, compilers.ptxas)
        known = {**self.stale, **self.records}
        near = [k for k in known if _any_build(k) == _any_build(wanted) and _distance(k, wanted)[0] <= FARTHEST]
        found = (known[k].config for k in sorted(near, key=lambda k: _distance(k, wanted)))
        return [dict(c) for c in dict.fromkeys(found)]


def means_the_same(record: Record) -> bool:
    """Whether the configuration comes to the same constants, options and grid as when it was recorded."""
    try:
        return record.launch == launch_digest(record.key, dict(record.config))
    except (ArithmeticError, LookupError, TypeError, ValueError):  # dims that are not those of the kernel
        return False


def why_stale(record: Record, compilers: Toolchain) -> tuple[str, ...]:
    """What has changed since ``record`` was made: source, triton, ptxas or launch; empty if it may be used."""
    now = {"source": KERNELS[record.key.kernel].fn.cache_key, "triton": compilers.triton, "ptxas": compilers.ptxas}
    changed = tuple(name for name, value in now.items() if getattr(record.key, name) != value)
    return changed if means_the_same(record) else (*changed, "launch")


def _any_size(key: Key) -> Key:
    return replace(key, sizes=())


def _any_build(key: Key) -> Key:
    return replace(key, sizes=(), source="", triton="", ptxas="")


def _distance(key: Key, wanted: Key) -> tuple[float, list[int]]:
    """The larger sizes first, of those as far."""
    return ratio(dict(key.sizes), dict(wanted.sizes)), [-n for _, n in key.sizes]


def _rank(record: Record) -> tuple[int, ...]:
    """Measured before predicted, then the newer; of predictions first the newer model, then the longer search."""
    if record.provenance == PREDICTED:
        return 0, record.model, record.trials, record.created
    return 1, record.created


def files_for(target: Target) -> list[Path]:
    """The shipped file of ``target`` and the user's. Raises IntegrityError if others may write the latter."""
    name = f"{target.name}.jsonl"
    own = [folder / name for folder in known_folders(FOLDER)]
    check_own(*own)
    return [SHIPPED / name, *own]


def own_file(target: Target) -> Path:
    """Where this user's records of ``target`` are written. Raises IntegrityError if others may write there."""
    path = writable_folder(FOLDER) / f"{target.name}.jsonl"
    check_own(path)
    return path


def load(paths: Iterable[Path]) -> Base:
    """What is sound in ``paths``; of one that cannot be read it is warned. Raises IntegrityError for one too large."""
    base = Base()
    for path in paths:
        try:
            check_size(path)
            _load(path, base)
        except OSError as e:
            warnings.warn(f"the tuning records in {path} are not used: {e.strerror}", stacklevel=2)
    return base


def _load(path: Path, base: Base) -> None:
    damaged = set()
    for line in lines.scan(path):
        record = parse(line.value) if line.value is not None else None
        if record is None:
            damaged.add(line.number)
        elif isinstance(record, Record):
            base.add(record)
        else:
            base.refused.append(f"{path.name}: {record}")
    base.damaged += len(damaged)


def check_size(path: Path) -> None:
    if path.exists() and path.stat().st_size > MOST_BYTES:
        raise IntegrityError(
            f"{path} is larger than any file of tuning records, which has at most {MOST_BYTES} bytes",
            "Move it away: it would take minutes to read.",
        )


def save(path: Path, records: Iterable[Record], told: Told | None = None, wait: bool = True) -> None:
    """Append ``records``. ``told`` and ``wait`` as in `lock.locked`."""
    lines.append(path, [r.to_json() for r in records], told, wait)
