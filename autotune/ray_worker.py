"""What runs on a node of a Ray cluster: a local runner, and what the node compiles with."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dsv2_compile
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.devices.identify import Gpu
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.targets import Target

_SOURCES = ("kernels/gpu/source/**/*.py", "kernels/gpu/aot.py", "backends/cuda/disassembly.py")
"""What makes a cubin of a job, and what reads it."""
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
_NAMED = 3
"""Source files that are named in a difference; of the others there is the count."""


@dataclass(frozen=True)
class Facts:
    """All that the bytes of a cubin depend on beside its job, and for what measures the profile of its GPU. ``files``:
    digests of those of `_SOURCES`. ``device``: the GPU, for people."""

    versions: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    device: str = ""

    def differences(self, here: Facts) -> list[str]:
        """From ``here``, in words."""
        out = [
            f"{n} is {self.versions.get(n)}, here {here.versions.get(n)}"
            for n in _changed(self.versions, here.versions)
        ]
        if files := _changed(self.files, here.files):
            more = [f"{len(files) - _NAMED} more"] if len(files) > _NAMED else []
            out.append(f"sources differ: {', '.join([*files[:_NAMED], *more])}")
        return out


def _changed(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return sorted(n for n in {*a, *b} if a.get(n) != b.get(n))


def facts(target: Target, gpu: Gpu | str | None = None) -> Facts:
    """Of this machine, for kernels of ``target``. ``gpu``: what it measures on, or why it cannot."""
    try:
        versions = vars(toolchain(target))
    except IncompatibleError as e:
        versions = {"triton": f"of no use ({e.cause})"}
    known = Facts({"dsv2-compile": dsv2_compile.__version__, **versions}, _sources())
    if gpu is None:
        return known
    profile, device = (gpu, "") if isinstance(gpu, str) else (gpu.target or gpu.name, f"{gpu.name}, CUDA {gpu.cuda}")
    return replace(known, versions={**known.versions, "the GPU": profile}, device=device)


def _sources() -> dict[str, str]:
    root = Path(dsv2_compile.__file__).parent
    paths = (path for pattern in _SOURCES for path in root.glob(pattern))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


class RayWorker:
    """A Ray actor of two threads, so that it can be stopped. ``make`` gives the runner that it uses, which does a job
    at a time in processes that end, each with its group, when the actor's own does. Ray, where it ends an actor, would
    kill those processes before they can end their groups; so the actor ends by itself, or with its parent, the node's
    raylet."""

    def __init__(self, make: Callable[[], Any]) -> None:
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        self._runner = make()

    def facts(self, target: Target, measures: bool) -> Facts:
        return facts(target, self._runner.device() if measures else None)

    def run(self, job: Any) -> Any:
        with closing(self._runner.run([job])) as outcomes:
            return next(outcomes)[1]

    def close(self) -> None:
        self._runner.close()

    def stop(self) -> None:
        os._exit(0)
