"""Faults at every disk operation of an engine build, and the check that none leaves a bad engine."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from dsv2_compile.engine import disk, integrity, writer
from tests import toy_engine

OPERATIONS = ("write", "fsync", "open", "mkdir", "rename", "replace", "unlink")


@contextmanager
def at_each_operation(before: Callable[[int, str], None], after: Callable[[int, str], None]) -> Iterator[list[int]]:
    """Calls ``before`` and ``after`` around disk operation number i; yields a list holding the count."""
    count = [0]

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            reading = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)
            if reading:
                return real(*args, **kwargs)
            i, count[0] = count[0], count[0] + 1
            before(i, name)
            result = real(*args, **kwargs)
            after(i, name)
            return result

        return call

    patches = [mock.patch.object(os, name, wrapped(name, getattr(os, name))) for name in OPERATIONS]
    patches.append(mock.patch.object(writer, "exchange", wrapped("exchange", disk.exchange)))
    for p in patches:
        p.start()
    try:
        yield count
    finally:
        for p in patches:
            p.stop()


def nothing(i: int, name: str) -> None:
    """No fault."""


def failing(at: int, code: int) -> Callable[[int, str], None]:
    def before(i: int, name: str) -> None:
        if i == at:
            raise OSError(code, os.strerror(code))

    return before


def killing(at: int) -> Callable[[int, str], None]:
    def hit(i: int, name: str) -> None:
        if i == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return hit


def identity(out: Path) -> str | None:
    """The seed an engine was built from, None if there is none. Raises if it is not whole."""
    if not out.exists():
        return None
    manifest = integrity.read_manifest(out)
    integrity.verify(out, manifest)
    return manifest.source.name


def build(out: Path, seed: int, force: bool) -> None:
    from dsv2_compile.engine.manifest import SourceEntry

    toy_engine.build(out, force, seed=seed, source_entry=SourceEntry(str(seed), None, None))


def _child(out: Path, seed: int, force: bool, instrument: Any) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            with instrument:
                build(out, seed, force)
            os._exit(0)
        except BaseException as e:
            print(f"child: {e!r}", file=sys.stderr)
            os._exit(1)
    return pid


def kill_builds(out: Path, points: int, seed: int) -> dict[str, int]:
    """Kill builds over an existing engine: at every operation, then at ``points`` random moments.

    After each one: the old engine is whole or the new one is. Returns counts; raises at the first mixture.
    """
    build(out, 0, False)
    with at_each_operation(nothing, nothing) as count:
        build(out, 0, True)
    seen = {"old": 0, "new": 0, "finished": 0}
    rng = random.Random(seed)
    current = "0"
    start = time.perf_counter()
    os.waitpid(_child(out, 0, True, at_each_operation(nothing, nothing)), 0)
    typical = time.perf_counter() - start

    def settle(pid: int, new: str) -> None:
        nonlocal current
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise AssertionError("a build failed by itself")
        found = identity(out)
        if found not in (current, new):
            raise AssertionError(f"found engine {found}, expected {current} or {new}")
        seen["finished" if os.WIFEXITED(status) else "new" if found == new else "old"] += 1
        current = str(found)

    number = 1
    for i in range(count[0]):
        for instrument in (at_each_operation(killing(i), nothing), at_each_operation(nothing, killing(i))):
            settle(_child(out, number, True, instrument), str(number))
            number += 1
    for _ in range(points):
        pid = _child(out, number, True, at_each_operation(nothing, nothing))
        time.sleep(rng.random() * typical)
        os.kill(pid, signal.SIGKILL)
        settle(pid, str(number))
        number += 1
    build(out, number, True)
    if identity(out) != str(number) or sorted(p.name for p in out.parent.iterdir()) != [out.name]:
        raise AssertionError("the last build did not clean up")
    return seen


CODES = (errno.ENOSPC, errno.EIO)

if __name__ == "__main__":
    import json

    print(json.dumps(kill_builds(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
