"""The releases of Triton that kernels are written for: compiled, and interpreted on the host."""

from __future__ import annotations

import functools
import re

from dsv2_compile.errors import IncompatibleError

OLDEST, NEWEST = (3, 6), (3, 8)
INSTALL = f"Install one that is supported: pip install 'triton>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}'"


@functools.cache
def check_version(version: str) -> None:
    """IncompatibleError for a release of Triton that is not supported."""
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if number < OLDEST:
        raise IncompatibleError(f"Triton {version} is older than {OLDEST[0]}.{OLDEST[1]}.", INSTALL)
    if number > NEWEST:
        raise IncompatibleError(
            f"Triton {version} is newer than {NEWEST[0]}.{NEWEST[1]}: since 3.9 it writes sm_90 cubins with ELF ABI 8, "
            "which drivers of CUDA 12 may not load.",
            INSTALL,
        )
