"""What the figures were measured on. No date, no host name: nothing that changes from run to run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("dsv2-compile", "numpy", "onnxruntime", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class Machine:
    """``cores``: those this process may use. ``versions``: of what is installed, used or not."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


def machine() -> Machine:
    return Machine(
        _cpu(),
        len(os.sched_getaffinity(0)),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        f"{platform.system()} {platform.machine()}",
        platform.python_version(),
        {name: version for name in LIBRARIES if (version := _version(name))},
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    if name == "dsv2-compile":
        from dsv2_compile import __version__

        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def own_memory() -> dict[str, int]:
    """Bytes of this process: ``peak_rss`` (files mapped by it included), ``private`` now (they are not)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {"peak_rss": "VmHWM", "private": "RssAnon"}
    return {name: int(status[key].split()[0]) * 1024 for name, key in kilobytes.items()}
