"""Writing that survives a crash: hashed files, synced files and folders, atomic swaps, typed errors."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from dsv2_compile.engine.manifest import FileEntry
from dsv2_compile.errors import Dsv2Error, ResourceError, UsageError

_BLOCK = 8 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns an OSError inside into UsageError (no permission) or ResourceError (full, failing, gone)."""
    try:
        yield
    except OSError as e:
        raise disk_error(e, path) from e


def disk_error(e: OSError, path: Path) -> Dsv2Error:
    if e.errno in _NO_ACCESS:
        return UsageError(f"Cannot write {path}: {e.strerror}.", "Choose an output directory that you may write to.")
    return ResourceError(
        f"Writing {path} failed: {e.strerror}.",
        "Free disk space or choose another disk, then run the same command again: finished shards are kept.",
    )


class HashedFile:
    """A new file whose SHA-256 is taken on the way. Closing it without error syncs it; then `entry` is set."""

    entry: FileEntry

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> Self:
        with disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o666)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """All of ``data`` (one byte per item); short writes are continued."""
        view = memoryview(data)
        with disk(self.path):
            for start in range(0, len(view), _BLOCK):
                block = view[start : start + _BLOCK]
                self._digest.update(block)
                while len(block):
                    block = block[os.write(self._fd, block) :]
        self._bytes += len(view)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                with disk(self.path):
                    os.fsync(self._fd)
                self.entry = FileEntry(self._digest.hexdigest(), self._bytes)
        finally:
            os.close(self._fd)


def sync_tree(root: Path) -> None:
    """fsync every folder below and at ``root``, so that the names in them survive a power cut."""
    for folder, _, _ in os.walk(root, topdown=False):
        sync_dir(Path(folder))


def sync_dir(folder: Path) -> None:
    with disk(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def exchange(a: Path, b: Path) -> bool:
    """Swap two existing names in one step (Linux renameat2). False where the system cannot; nothing moved then."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise disk_error(OSError(code, os.strerror(code)), b)
