"""Calls that every kernel is checked with, on the host and on a GPU: `CASES[kernel name]`; and, for any call, the case
of that very call and others of the same dims, which the same compiled kernel runs."""

from __future__ import annotations

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
from dsv2_compile.kernels.gpu.cases.makers import Maker
from dsv2_compile.kernels.gpu.check import Case
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config

_PARTS = (norm, embedding, linear, cache, mla_prefill, mla_split, mla_paged, sampling, gate, dispatch, moe)

CASES: dict[str, list[Case]] = {name: cases for part in _PARTS for name, cases in part.CASES.items()}
_MAKERS: dict[str, Maker] = {name: maker for part in _PARTS for name, maker in part.MAKERS.items()}

LIMIT = 2e10
"""FLOP of a held-out case: a second or so of fp64 on a host of 16 cores."""


def case_for(call: Call) -> Case:
    """``call`` itself, with inputs as a model's are: sequences of one length, some experts more wanted than others."""
    return _MAKERS[call.kernel].same(dict(call.dims), dict(call.sizes))


def held_out(call: Call, config: Config | None = None, limit: float = LIMIT) -> list[Case]:
    """Eight at least with the dims of ``call`` and other sizes or inputs: one row, rows and lengths at the edges of the
    blocks of ``config``, lengths of 0 and 1, edges of pages, experts without tokens, ties, padding. What takes more
    than ``limit`` FLOP is left out, but for a few rows."""
    return _MAKERS[call.kernel].others(dict(call.dims), dict(call.sizes), config or {}, limit)


def follower(call: Call, config: Config) -> Call | None:
    """What has to be called after ``call`` with ``config``."""
    following = KERNELS[call.kernel].then(dict(call.dims), config)
    if following is None:
        return None
    name, dims = following
    return Call.of(KERNELS[name], dims, dict(call.sizes), call.dtype)
