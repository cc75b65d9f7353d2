"""Calls that every kernel is checked with, on the host and on a GPU: `CASES[kernel name]`."""

from dsv2_compile.kernels.gpu.cases import cache, norm
from dsv2_compile.kernels.gpu.check import Case

CASES: dict[str, list[Case]] = {**norm.CASES, **cache.CASES}
