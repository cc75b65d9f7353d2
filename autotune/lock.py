"""Who may write a file: one process at a time, by a lock that the operating system takes back from the dead."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dsv2_compile.errors import PartialError

PATIENCE = 1.0
"""Seconds of waiting after which it is told for whom."""
_POLL = 0.005
_NONE_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system without locks answers."""

Told = Callable[[str], None]
"""Called once with the owner of a lock that is waited for."""


@contextmanager
def locked(path: Path, told: Told | None = None, wait: bool = True) -> Iterator[None]:
    """Inside, no other process writes ``path``. The lock is of the file beside it that ends in .lock, which stays.

    Raises PartialError if another process holds it and ``wait`` is false, OSError if the folder cannot be written.
    """
    with open(path.with_name(path.name + ".lock"), "a+b", buffering=0, opener=opener) as f:
        held = _acquire(f, path, told, wait)
        try:
            _sign(f, f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            _sign(f, "")
            if held:
                fcntl.flock(f, fcntl.LOCK_UN)  # also from a child that was forked meanwhile and shares it


def _acquire(f: BinaryIO, path: Path, told: Told | None, wait: bool) -> bool:
    """False where there are no locks."""
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        except OSError as e:
            if e.errno not in _NONE_HERE:
                raise
            warnings.warn(f"{path.parent} has no locks: let one process at a time write there", stacklevel=2)
            return False
        if not wait:
            raise PartialError(f"{path} is being written by {_owner(f)}", "Wait until it is done, or run this again.")
        if told and time.monotonic() - start >= PATIENCE:
            told(_owner(f))
            told = None
        if time.monotonic() - start >= PATIENCE:
            fcntl.flock(f, fcntl.LOCK_EX)
            return True
        time.sleep(_POLL)


def _sign(f: BinaryIO, owner: str) -> None:
    """For those who wait; nothing depends on it."""
    with suppress(OSError):
        f.truncate(0)
        f.write(owner.encode())


def _owner(f: BinaryIO) -> str:
    f.seek(0)
    text = f.read(200).decode("ascii", "replace")
    return text if text.isprintable() and text else "another process"


def opener(path: str, flags: int) -> int:
    """Never writable by others, whatever the umask is."""
    return os.open(path, flags, 0o644)
