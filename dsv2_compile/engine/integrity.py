"""Checks an engine directory before anything of it is loaded: an engine is a program.

Nothing is followed out of the directory: links are refused, only regular files that the manifest
lists may be there, and each has the listed size and SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dsv2_compile.engine import manifest as manifests
from dsv2_compile.engine.manifest import FileEntry, Manifest
from dsv2_compile.errors import IntegrityError, UsageError

THREADS = 2
_BLOCK = 4 << 20
_REMEDY = "Do not use this engine: copy it again from where it was built, or rebuild it with dsv2-compile build."


def read_manifest(root: Path) -> Manifest:
    """Parse ``root``/manifest.json. UsageError if ``root`` is no directory, IntegrityError if there is none."""
    if not root.is_dir():
        raise UsageError(f"{root} is not a directory.", "Give the engine directory that dsv2-compile build wrote.")
    try:
        fd = _open(root / manifests.FILE_NAME)
    except OSError as e:
        raise IntegrityError(f"{root / manifests.FILE_NAME}: {e.strerror}.", _REMEDY) from None
    with os.fdopen(fd, "rb") as f:
        return manifests.parse(f.read(manifests.MAX_BYTES + 1))


def verify(root: Path, manifest: Manifest) -> None:
    """Every file of ``root`` is what ``manifest`` says and nothing else is there, else IntegrityError."""
    found = []
    present: dict[str, int] = {}
    try:
        for path, size, problem in listing(root):
            present[path] = size
            if problem:
                found.append(f"{path}: {problem}")
    except OSError as e:
        found.append(f"a folder cannot be read: {e.strerror}")
    expected = manifest.files
    found += [f"{p}: not listed in the manifest" for p in present if p not in expected and p != manifests.FILE_NAME]
    for path, entry in expected.items():
        if path not in present:
            found.append(f"{path}: missing")
        elif present[path] != entry.bytes:
            found.append(f"{path}: {present[path]} bytes, expected {entry.bytes}")
    if not found:
        found = _hash_problems(root, expected)
    if found:
        raise IntegrityError(f"{root} is not the engine that was built: {len(found)} problems.", _REMEDY, found[:20])


def listing(root: Path) -> Iterator[tuple[str, int, str]]:
    """(relative path, bytes, problem or "") of everything below ``root`` that is not a plain directory.

    An empty directory is listed too: no file of an engine needs one.
    """
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as entries:
            children = sorted(entries, key=lambda e: e.name)
        if folder and not children:
            yield folder, 0, "empty directory"
        for child in children:
            path = f"{folder}/{child.name}" if folder else child.name
            info = child.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                pending.append(path)
            else:
                yield path, info.st_size, _kind_problem(info)


def _kind_problem(info: os.stat_result) -> str:
    if not stat.S_ISREG(info.st_mode):
        return "symbolic link" if stat.S_ISLNK(info.st_mode) else "not a regular file"
    return "hard link: the file has a second name" if info.st_nlink > 1 else ""


def file_entry(path: Path) -> FileEntry:
    """SHA-256 and size of a regular file, read in blocks; OSError if it cannot be read."""
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK))
    with os.fdopen(_open(path), "rb", buffering=0) as f:
        while n := f.readinto(block):
            digest.update(block[:n])
            size += n
    return FileEntry(digest.hexdigest(), size)


def _open(path: Path) -> int:
    """Open for reading; a link, a FIFO or a device is an OSError and never blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(None, "not a regular file", str(path))
    return fd


def _hash_problems(root: Path, expected: dict[str, FileEntry]) -> list[str]:
    def check(item: tuple[str, FileEntry]) -> str | None:
        path, entry = item
        try:
            actual = file_entry(root / path)
        except OSError as e:
            return f"{path}: {e.strerror}"
        return None if actual == entry else f"{path}: SHA-256 differs"

    largest_first = sorted(expected.items(), key=lambda item: -item[1].bytes)
    with ThreadPoolExecutor(THREADS) as pool:
        return [p for p in pool.map(check, largest_first) if p]
