"""Where this program keeps what it can make again."""

from __future__ import annotations

import os
import tempfile
import warnings
from functools import cache
from pathlib import Path
from stat import S_ISVTX, S_IWOTH

from dsv2_compile.errors import IntegrityError

VARIABLE = "DSV2_CACHE_DIR"


def cache_folder(name: str) -> Path:
    """The folder ``name`` in ``DSV2_CACHE_DIR``, else in ~/.cache/dsv2-compile, or for a user who has no home in the
    temporary folder. It may not exist yet."""
    try:
        return Path(os.environ.get(VARIABLE) or "~/.cache/dsv2-compile").expanduser() / name
    except RuntimeError:
        return temporary_folder(name)


def temporary_folder(name: str) -> Path:
    """The same for this user in the temporary folder, where others may have made it before: see `check_own`."""
    return Path(tempfile.gettempdir()) / f"dsv2-compile-{os.getuid()}" / name


def known_folders(name: str) -> list[Path]:
    """Where `writable_folder` has put ``name``, now or before. Raises IntegrityError if others may write the first;
    a temporary one that they have made is left alone."""
    first, second = cache_folder(name), temporary_folder(name)
    check_own(*_chain(first, name))
    return [first] if second == first or any(map(_others, _chain(second, name))) else [first, second]


def writable_folder(name: str) -> Path:
    """`cache_folder`, made if need be; if it cannot be written, `temporary_folder`, and one warning.
    Raises IntegrityError if others may write there."""
    folder = cache_folder(name)
    check_own(*_chain(folder, name))
    reason = _unwritable(folder)
    if reason:
        _warn(folder, reason, folder := temporary_folder(name))
        check_own(*_chain(folder, name))
        _make(folder)
    return folder


def check_own(*paths: Path) -> None:
    """Raises IntegrityError for one that belongs to another user than this one and root, or that all may write and
    rename what is in it. One that is not there is right."""
    for path in paths:
        if others := _others(path):
            raise IntegrityError(
                f"{path} cannot be trusted: {others}",
                f"chown or chmod it if what is there is yours, or set {VARIABLE} to a folder that only you may write.",
            )


def _others(path: Path) -> str:
    """Who else may write ``path``, or nothing."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
    if found.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {found.st_uid}, not to user {os.geteuid()}"
    return "all users may write it" if found.st_mode & S_IWOTH and not found.st_mode & S_ISVTX else ""


def _chain(folder: Path, name: str) -> list[Path]:
    """``folder`` and those above it, up to the one that holds ``name``."""
    return [folder, *folder.parents][: len(Path(name).parts) + 1]


def _make(folder: Path) -> None:
    """Never writable by others, whatever the umask is."""
    for path in reversed([folder, *folder.parents]):
        path.mkdir(mode=0o755, exist_ok=True)


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there, or nothing."""
    try:
        _make(folder)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as e:
        return e.strerror or str(e)


@cache
def _warn(folder: Path, reason: str, instead: Path) -> None:
    """Once for each folder."""
    text = f"{folder} cannot be written ({reason}): what is kept goes to {instead}; set {VARIABLE} to choose"
    warnings.warn(text, stacklevel=2)
