"""The compilers that make cubins, and which of them may."""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass

from dsv2_compile.errors import IncompatibleError
from dsv2_compile.kernels.gpu.versions import INSTALL, check_version
from dsv2_compile.targets import Target

KEPT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"),
    *("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH", "TRITON_CUOBJDUMP_PATH", "TRITON_NVDISASM_PATH"),
)
"""Variables that a compile may see. Triton and LLVM read many more, which would change cubins behind the cache."""


@dataclass(frozen=True)
class Toolchain:
    """``ptxas``: of the target, with its build."""

    triton: str
    ptxas: str


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT if name in os.environ}


def toolchain(target: Target) -> Toolchain:
    """What compiles for ``target``. Raises IncompatibleError for a Triton that is missing or not supported."""
    try:
        import triton
    except ImportError as e:
        raise IncompatibleError(f"GPU kernels need Triton: {e}.", INSTALL) from None
    check_version(triton.__version__)
    if triton.knobs.runtime.interpret:
        raise IncompatibleError("TRITON_INTERPRET is set, so Triton cannot compile.", "Unset it and run again.")
    nvidia = triton.knobs.nvidia
    ptxas = nvidia.ptxas_blackwell if target.architecture.number >= 100 else nvidia.ptxas
    return Toolchain(triton.__version__, _build(ptxas.path))


@functools.cache
def _build(ptxas: str) -> str:
    lines = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")
    return next(line for line in reversed(lines) if line.strip()).removeprefix("Build ").strip()
