"""Writes an engine directory: complete under its final name, or not there at all.

Everything is built in ``.NAME.build`` beside the target, synced, and moved in one rename, the
manifest being the last file written. An engine that is replaced stays whole until that moment.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from dsv2_compile.engine import integrity
from dsv2_compile.engine.disk import HashedFile, disk, disk_error, exchange, sync_dir, sync_tree
from dsv2_compile.engine.journal import Journal, work_directory
from dsv2_compile.engine.manifest import FILE_NAME, FileEntry, Manifest
from dsv2_compile.engine.placement import Placement
from dsv2_compile.engine.shards import Shard, plan_shards, write_shard
from dsv2_compile.errors import ModelError, ResourceError, UsageError
from dsv2_compile.weights import Recipe, TensorSource

_COPY_BLOCK = 8 << 20


class EngineWriter:
    """Use as a context manager; `finish` publishes.

    ``force`` replaces an engine already at ``out``. ``inputs`` are paths the build reads: ``out`` may
    not be or contain one. ``fingerprint`` names what the weights are made from (checkpoint hash): a
    build stopped before goes on if it is the same; without one nothing is reused.
    UsageError before any work if ``out`` cannot be written as asked.
    """

    def __init__(
        self, out: str | Path, force: bool = False, *, inputs: Iterable[Path] = (), fingerprint: str = ""
    ) -> None:
        self.out = Path(os.path.abspath(out))
        self._force = force
        inputs = [Path(os.path.realpath(p)) for p in inputs]
        _refuse_target(self.out, force, inputs)
        self._work = work_directory(self.out)
        self.stage = self._work / "engine"
        with disk(self._work):
            self._work.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._work, self.out)
        try:
            with disk(self._work):
                _recover(self._work / "old", self.out)
            _refuse_target(self.out, force, inputs)  # again: an engine may have come back
            self._journal = Journal(self._work / "journal", fingerprint)
            if not self._journal.resumable:
                shutil.rmtree(self.stage, ignore_errors=True)
            with disk(self.stage):
                self.stage.mkdir(exist_ok=True)
            self._journal.start()
        except BaseException:
            os.close(self._lock)
            raise
        self.files: dict[str, FileEntry] = {}
        self.weights: dict[str, Placement] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """Without `finish` the stage is removed, unless a later build can go on from its shards."""
        try:
            if not self._journal.resumable:
                shutil.rmtree(self._work, ignore_errors=True)
        finally:
            os.close(self._lock)

    def add_bytes(self, rel: str, data: bytes) -> None:
        with HashedFile(self.stage / rel) as f:
            f.write(data)
        self.files[rel] = f.entry

    def add_file(self, rel: str, path: str | Path) -> None:
        """Copy ``path`` unchanged; ModelError if it cannot be read."""
        try:
            with open(path, "rb") as source, HashedFile(self.stage / rel) as f:
                while block := source.read(_COPY_BLOCK):
                    f.write(block)
        except OSError as e:  # of the source: what concerns the copy is a Dsv2Error already
            raise ModelError(f"Cannot read {path}: {e.strerror}.", "Check the input files.") from e
        self.files[rel] = f.entry

    def write_weights(
        self,
        recipes: Mapping[str, Recipe],
        source: TensorSource,
        dtype: torch.dtype,
        max_shard_bytes: int = 4 << 30,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Placement]:
        """Evaluate every recipe into safetensors shards; equal recipes are stored once.

        Shards a stopped build finished are kept. ``progress`` gets bytes done and in total.
        ResourceError if the disk is too small, before writing, or when it fails.
        """
        first: dict[Recipe, str] = {}
        for name, recipe in recipes.items():
            first.setdefault(recipe, name)
        shards = plan_shards({name: r for name, r in recipes.items() if first[r] == name}, dtype, max_shard_bytes)
        kept = {s.file: e for s in shards if (e := self._journal.finished(self.stage, s.file, s.plan()))}
        total = sum(s.nbytes for s in shards)
        done = sum(e.bytes for e in kept.values())
        self._refuse_small_disk(total - done)
        progress(done, total)

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, total)

        for shard in shards:
            if shard.file not in kept:
                kept[shard.file] = self._write_shard(shard, source, dtype, advance)
        self.files |= kept
        stored = {name: placement for s in shards for name, _, placement in s.recipes}
        self.weights |= {name: stored[first[recipe]] for name, recipe in recipes.items()}
        return {name: self.weights[name] for name in recipes}

    def _write_shard(
        self, shard: Shard, source: TensorSource, dtype: torch.dtype, advance: Callable[[int], None]
    ) -> FileEntry:
        with HashedFile(self.stage / shard.file) as f:
            write_shard(shard, f, source, dtype, advance)
        sync_dir(f.path.parent)
        self._journal.add(shard.file, shard.plan(), f.entry)
        return f.entry

    def seal(self, manifest: Manifest) -> Manifest:
        """Write the manifest into `stage`, with the files and weights written so far.

        `stage` is then a whole engine that can be loaded and checked before `finish`.
        """
        manifest = replace(manifest, files=dict(self.files), weights=dict(self.weights))
        data = manifest.to_bytes()
        with disk(self.stage):
            for path, _, _ in list(integrity.listing(self.stage)):
                if path not in self.files:
                    _remove(self.stage / path)
        with HashedFile(self.stage / FILE_NAME) as f:
            f.write(data)
        return manifest

    def finish(self, manifest: Manifest, ending: str = "") -> Manifest:
        """Seal, sync and publish under the final name plus ``ending``. The manifest as written.

        With an ending, what lay under that name is replaced: it is this writer's own earlier output.
        """
        manifest = self.seal(manifest)
        if ending:
            self.out, self._force = self.out.with_name(self.out.name + ending), True
            _refuse_target(self.out, True, [])
        sync_tree(self.stage)
        self._publish()
        sync_dir(self.out.parent)
        shutil.rmtree(self._work, ignore_errors=True)
        return manifest

    def _publish(self) -> None:
        with disk(self.out):
            try:
                os.rename(self.stage, self.out)  # also over an empty directory
                return
            except OSError as e:
                if not (self._force and self.out.is_dir()):
                    raise disk_error(e, self.out) from e
            if not exchange(self.stage, self.out):
                os.rename(self.out, self._work / "old")  # `_recover` puts it back if we die before the next line
                os.rename(self.stage, self.out)

    def _refuse_small_disk(self, need: int) -> None:
        with disk(self.stage):
            free = shutil.disk_usage(self.stage).free
        if need > free:
            raise ResourceError(
                f"The weights need {need / 1e9:.2f} GB more on {self.out.parent}, {free / 1e9:.2f} GB are free.",
                "Free disk space or choose an output directory on another disk.",
            )


def _refuse_target(out: Path, force: bool, inputs: list[Path]) -> None:
    real = Path(os.path.realpath(out))
    if any(p == real or p.is_relative_to(real) for p in inputs):
        raise UsageError(f"The output {out} is or contains an input.", "Give another output directory with -o.")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"The output {out} exists and is not a directory.", "Give another output directory with -o.")
    with disk(out):
        occupied = out.is_dir() and any(out.iterdir())
    if occupied and not force:
        raise UsageError(f"The output {out} exists.", "Give another output directory, or --force to replace it.")
    if occupied and not (out / FILE_NAME).is_file():
        raise UsageError(
            f"The output {out} exists and is not an engine; it is not replaced.", "Give another output directory."
        )


def _locked(work: Path, out: Path) -> int:
    """A descriptor holding the lock on ``work``; the system drops it when the process ends, however it ends."""
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = work.exists() and os.path.samestat(os.fstat(fd), os.stat(work))
    except BlockingIOError:
        held = False
    if not held:
        os.close(fd)
        raise UsageError(f"Another build is writing {out}.", "Wait for it to end, or give another output directory.")
    return fd


def _recover(old: Path, out: Path) -> None:
    """Undo a replacement that stopped between its two renames, or remove what a finished one left."""
    if old.exists():
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
