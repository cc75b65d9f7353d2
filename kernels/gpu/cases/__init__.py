"""Calls that every kernel is checked with, on the host and on a GPU: `CASES[kernel name]`."""

from dsv2_compile.kernels.gpu.cases import (
    cache,
    dispatch,
    embedding,
    gate,
    linear,
    mla_paged,
    mla_prefill,
    mla_split,
    moe,
    norm,
    sampling,
)
from dsv2_compile.kernels.gpu.check import Case

CASES: dict[str, list[Case]] = {
    **norm.CASES,
    **embedding.CASES,
    **linear.CASES,
    **cache.CASES,
    **mla_prefill.CASES,
    **mla_split.CASES,
    **mla_paged.CASES,
    **sampling.CASES,
    **gate.CASES,
    **dispatch.CASES,
    **moe.CASES,
}
