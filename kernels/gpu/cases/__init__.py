"""Calls that every kernel is checked with, on the host and on a GPU: `CASES[kernel name]`."""

from dsv2_compile.kernels.gpu.cases import cache, embedding, linear, mla_prefill, norm
from dsv2_compile.kernels.gpu.check import Case

CASES: dict[str, list[Case]] = {**norm.CASES, **embedding.CASES, **linear.CASES, **cache.CASES, **mla_prefill.CASES}
