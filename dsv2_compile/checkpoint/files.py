"""Opens the files of a checkpoint: regular files of its own folder, whoever wrote the names.

A symbolic link is followed only where it stays in the folder, or where the folder is a snapshot of a Hugging Face
cache and the link ends among the blobs of the same repository. A hard link is the file itself and allowed: it is
the way to give large shards a second folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class FileError(ValueError):
    """One line, without the file's name: why it is not read."""


def open_file(root: Path, name: str) -> int:
    """A descriptor for reading ``root``/``name``. Nothing but a regular file is ever opened; FileError otherwise."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name) > 255:
        raise FileError("not a plain file name; files of a checkpoint lie directly in its folder")
    path = root / name
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            path = _target(root, path)
            info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode):
            raise FileError("not a regular file")
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise FileError(e.strerror or type(e).__name__) from None
    if not os.path.samestat(os.fstat(fd), info):
        os.close(fd)
        raise FileError("replaced while it was opened")
    return fd


def read_file(root: Path, name: str, max_bytes: int) -> bytes:
    """The whole file; FileError if it is larger than ``max_bytes``."""
    with os.fdopen(open_file(root, name), "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size > max_bytes:
            raise FileError(f"{size} bytes, the limit is {max_bytes}")
        return f.read(max_bytes)


def _target(root: Path, link: Path) -> Path:
    real = Path(os.path.realpath(root))
    target = Path(os.path.realpath(link))
    if not (target.is_relative_to(real) or (real.parent.name == "snapshots" and _is_blob(real, target))):
        raise FileError("a symbolic link out of the folder; put a copy or a hard link there")
    return target


def _is_blob(snapshot: Path, target: Path) -> bool:
    return target.parent == snapshot.parent.parent / "blobs"
