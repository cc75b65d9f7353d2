"""A directory that is complete under its name, or not there at all: written beside it and moved in one rename."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv2_compile.engine.disk import disk, disk_error, exchange, sync_dir, sync_tree
from dsv2_compile.errors import ResourceError, UsageError


@contextmanager
def staged(out: Path, force: bool, command: str) -> Iterator[Path]:
    """An empty directory that takes the name ``out`` if all goes well, and goes away if not.

    ``force``: it may take the place of a directory, which then goes. UsageError while another ``command`` has it.
    """
    stage = out.parent / f".{out.name}.{command}"
    with disk(stage):
        stage.mkdir(parents=True, exist_ok=True)
        lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _alone(lock, stage):
            raise UsageError(f"Another {command} is writing {out}.", "Wait for it, or give another output directory.")
        try:
            for leftover in stage.iterdir():
                _remove(leftover)
            yield stage
            sync_tree(stage)
            _publish(stage, out, force)
            sync_dir(out.parent)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    finally:
        os.close(lock)


def require_room(stage: Path, need: int, remedy: str) -> None:
    """ResourceError unless ``need`` bytes are free where ``stage`` is."""
    with disk(stage):
        free = shutil.disk_usage(stage).free
    if need > free:
        raise ResourceError(
            f"The output needs {need / 1e9:.2f} GB on {stage.parent}, {free / 1e9:.2f} GB are free.", remedy
        )


def _alone(lock: int, stage: Path) -> bool:
    """Whether we hold ``stage``: nobody else has it, or had it and moved it away since we opened it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return stage.exists() and os.path.samestat(os.fstat(lock), os.stat(stage))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _publish(stage: Path, out: Path, force: bool) -> None:
    with disk(out):
        try:
            os.rename(stage, out)  # also over an empty directory
        except OSError as e:
            if not (force and out.is_dir()):
                raise disk_error(e, out) from e
            if not exchange(stage, out):
                shutil.rmtree(out)
                os.rename(stage, out)
