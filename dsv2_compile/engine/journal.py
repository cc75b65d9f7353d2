"""The record of finished weight shards that lets a stopped build go on.

One JSON line per shard, appended and synced after the shard itself. The first line holds the build's
fingerprint; with another one nothing is reused. A torn or damaged line is dropped, and a shard is
reused only if its file still has the recorded hash, so the journal cannot put wrong bytes in an engine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dsv2_compile.engine.disk import disk, sync_dir
from dsv2_compile.engine.integrity import file_entry
from dsv2_compile.engine.manifest import FileEntry


def work_directory(out: Path) -> Path:
    """Where the engine ``out`` is built: the journal and the stage lie there until it is published."""
    return out.parent / f".{out.name}.build"


class Journal:
    """``fingerprint`` names the inputs of the build; the empty one matches nothing, so nothing resumes."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._head = {"fingerprint": fingerprint}
        lines = _read(path) if fingerprint else []
        self._shards = {r["file"]: r for r in lines[1:] if "file" in r} if lines[:1] == [self._head] else {}

    @property
    def resumable(self) -> bool:
        """Whether a later build with the same fingerprint can go on from finished shards."""
        return bool(self._head["fingerprint"] and self._shards)

    def start(self) -> None:
        """Write the journal afresh with the shards that are still known."""
        fresh = self._path.with_suffix(".new")
        with disk(self._path):
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                for record in (self._head, *self._shards.values()):
                    _append(fd, record)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(fresh, self._path)
        sync_dir(self._path.parent)

    def finished(self, stage: Path, file: str, plan: str) -> FileEntry | None:
        """The entry of shard ``file`` if it was finished for the same ``plan`` and is undamaged on disk."""
        record = self._shards.get(file)
        if record is None:
            return None
        try:
            actual = file_entry(stage / file)
        except OSError:
            return None
        return actual if _record(file, plan, actual) == record else None

    def add(self, file: str, plan: str, entry: FileEntry) -> None:
        record = _record(file, plan, entry)
        with disk(self._path):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                _append(fd, record)
                os.fsync(fd)
            finally:
                os.close(fd)
        self._shards[file] = record


def _record(file: str, plan: str, entry: FileEntry) -> dict[str, Any]:
    return {"file": file, "plan": plan, "sha256": entry.sha256, "bytes": entry.bytes}


def _append(fd: int, record: dict[str, Any]) -> None:
    line = json.dumps(record, sort_keys=True).encode() + b"\n"
    while line:
        line = line[os.write(fd, line) :]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
