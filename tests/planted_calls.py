"""Small calls of every kernel, and configurations of them, for wrong kernels to be planted in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call

SIZES = {"rows": 6, "batch": 2, "context": 40}
Configs = Sequence[dict[str, int]]


def _calls(kernel: str, configs: Configs, *dims: Mapping[str, Any], **sizes: int) -> dict[Call, Configs]:
    return {Call.of(KERNELS[kernel], d, SIZES | sizes, "bf16"): configs for d in dims}


def _configs(knobs: Sequence[str], *values: Sequence[int]) -> Configs:
    return [dict(zip(knobs, row, strict=True)) for row in values]


_TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")
_FORMS = _configs(_TILE, (1, 32, 128, 1), (16, 64, 64, 2), (16, 16, 32, 4), (32, 32, 128, 2))
"""One row, swapped, plain, large."""
_SPLIT = [{**form, "SPLIT_K": split} for form, split in zip((*_FORMS, _FORMS[1]), (2, 1, 2, 1, 3), strict=True)]
_WIDE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 256, "GROUP_M": 1, "SPLIT_K": 4}
_ODD = {"N": 41, "K": 200, "X_STRIDE": 205, "OUT_STRIDE": 48, "INDEXED": False, "ROWS_HINT": 16}
_EVEN = {"N": 64, "K": 512, "X_STRIDE": 512, "OUT_STRIDE": 64, "INDEXED": True, "ROWS_HINT": 16}
_EXPERTS = {"EXPERTS": 5, "TOP_K": 2, "ROWS_HINT": 16}
_HEADS = {"HEADS": 3, "N": 20, "K": 40, "X_ROW": 150, "X_HEAD": 48, "OUT_ROW": 80, "OUT_HEAD": 24, "ROWS_HINT": 16}
_PAGED = {"HEADS": 5, "LATENT": 24, "ROPE": 8, "PAGE": 16, "MAX_PAGES": 16, "SCALE": 0.2}
_ROUTER = {"K": 40, "SCALE": 16.0, "NORMALIZE": False, "ROWS_HINT": 16}
_NORM = {"EPS": 1e-6, "RESIDUAL": False, "INDEXED": False}
_QUERY = {"HEADS": 5, "NOPE": 8, "ROPE": 12, "Q_ROW": 105, "OUT_ROW": 160, "OUT_HEAD": 32, "OUT_OFFSET": 16}
_ATTENTION = ("BLOCK_H", "BLOCK_N", "CHUNKS", "SWAP")

CALLS: dict[str, dict[Call, Configs]] = {
    "linear": _calls("linear", [*_SPLIT, _WIDE], _ODD, _EVEN),
    "linear_fp32": _calls("linear_fp32", _SPLIT[:3], _ODD, _EVEN),
    "split_k_sum": _calls(
        "split_k_sum",
        _configs(("BLOCK",), (16,), (32,), (64,)),
        {"N": 41, "OUT_STRIDE": 48, "SPLIT_K": 4},
        {"N": 33, "OUT_STRIDE": 33, "SPLIT_K": 2},
    ),
    "split_k_sum_fp32": _calls(
        "split_k_sum_fp32", _configs(("BLOCK",), (16,), (64,)), {"N": 41, "OUT_STRIDE": 48, "SPLIT_K": 3}
    ),
    "linear_swiglu": _calls(
        "linear_swiglu",
        _FORMS,
        {"N": 24, "K": 200, "X_STRIDE": 205, "ROWS_HINT": 16},
        {"N": 33, "K": 144, "X_STRIDE": 144, "ROWS_HINT": 16},
    ),
    "head_linear": _calls("head_linear", _configs(_TILE, (1, 16, 32, 1), (16, 64, 32, 2), (16, 16, 16, 4)), _HEADS),
    "moe_up": _calls(
        "moe_up",
        _configs(_TILE[:3], (1, 16, 64), (16, 16, 32), (16, 64, 16)),
        {**_EXPERTS, "N": 24, "K": 72},
        {"EXPERTS": 4, "TOP_K": 1, "N": 33, "K": 40, "ROWS_HINT": 16},
    ),
    "moe_down": _calls(
        "moe_down",
        _configs(_TILE[:3], (1, 16, 16), (16, 16, 32), (16, 64, 16)),
        {**_EXPERTS, "N": 40, "K": 24},
        {"EXPERTS": 4, "TOP_K": 3, "N": 33, "K": 40, "ROWS_HINT": 16},
    ),
    "moe_combine": _calls(
        "moe_combine",
        _configs(("BLOCK_N",), (16,), (32,), (64,)),
        {"N": 40, "TOP_K": 3, "SHARED": True},
        {"N": 33, "TOP_K": 2, "SHARED": False},
    ),
    "dispatch": _calls(
        "dispatch",
        _configs(("BLOCK",), (8,), (16,), (32,)),
        _EXPERTS,
        {"EXPERTS": 4, "TOP_K": 1, "ROWS_HINT": 16},
    ),
    "gate": _calls(
        "gate",
        _configs(("TOKENS", "BLOCK_K"), (16, 16), (16, 32), (32, 64)),
        {"EXPERTS": 12, "TOP_K": 3, "GROUPS": 4, "TOPK_GROUPS": 2, **_ROUTER},
        {"EXPERTS": 12, "TOP_K": 2, "GROUPS": 1, "TOPK_GROUPS": 1, **_ROUTER, "NORMALIZE": True},
    ),
    "rms_norm": _calls(
        "rms_norm",
        [{}],
        {**_NORM, "N": 64, "X_STRIDE": 72, "INDEXED": True},
        {**_NORM, "N": 40, "X_STRIDE": 48},
        {**_NORM, "N": 33, "X_STRIDE": 33, "RESIDUAL": True},
        {**_NORM, "N": 48, "X_STRIDE": 56, "RESIDUAL": True, "INDEXED": True},
    ),
    "embedding": _calls("embedding", _configs(("BLOCK",), (16,), (32,), (64,)), {"N": 40}, {"N": 33}),
    "latent_cache": _calls(
        "latent_cache",
        [{}],
        {"LATENT": 32, "ROPE": 4, "KV_STRIDE": 48, "EPS": 1e-6},
        {"LATENT": 24, "ROPE": 8, "KV_STRIDE": 40, "EPS": 1e-6},
        {"LATENT": 17, "ROPE": 12, "KV_STRIDE": 29, "EPS": 1e-6},
    ),
    "rope_query": _calls(
        "rope_query",
        _configs(("BLOCK_H",), (4,), (8,), (2,)),
        _QUERY,
        {"HEADS": 3, "NOPE": 16, "ROPE": 8, "Q_ROW": 72, "OUT_ROW": 72, "OUT_HEAD": 24, "OUT_OFFSET": 16},
    ),
    "mla_prefill": _calls(
        "mla_prefill",
        _configs(("BLOCK_M", "BLOCK_N"), (16, 16), (32, 16), (16, 32)),
        {"HEADS": 2, "NOPE": 12, "ROPE": 8, "V": 10, "LATENT": 16, "Q_ROW": 45, "SCALE": 0.25, "MAX_BATCH": 3},
        {"HEADS": 3, "NOPE": 16, "ROPE": 16, "V": 16, "LATENT": 8, "Q_ROW": 96, "SCALE": 0.2, "MAX_BATCH": 5},
    ),
    "mla_schedule": _calls(
        "mla_schedule",
        _configs(("BLOCK_R",), (4,), (16,), (32,)),
        {"PAGE": 16, "PARTS": 5, "OVERHEAD": 2},
        {"PAGE": 64, "PARTS": 9, "OVERHEAD": 1},
        context=300,
    ),
    "mla_combine": _calls(
        "mla_combine",
        _configs(("BLOCK_L", "BLOCK_S"), (16, 4), (32, 2), (16, 8)),
        {"HEADS": 3, "LATENT": 24, "PARTS": 11},
        {"HEADS": 2, "LATENT": 40, "PARTS": 7},
        context=2000,
    ),
    "mla_decode": _calls(
        "mla_decode",
        _configs(_ATTENTION, (16, 16, 1, 0), (16, 32, 2, 1), (4, 16, 1, 0), (16, 8, 2, 0)),
        {**_PAGED, "PARTS": 3},
        {**_PAGED, "HEADS": 8, "PARTS": 6},
        context=150,
    ),
    "mla_extend": _calls(
        "mla_extend",
        _configs(("QUERY_TILE", "BLOCK_H", "BLOCK_N", "CHUNKS"), (4, 4, 16, 1), (2, 8, 32, 2), (16, 1, 8, 1)),
        {**_PAGED, "MAX_BATCH": 3},
        {**_PAGED, "HEADS": 4, "MAX_BATCH": 6},
        context=90,
    ),
    "argmax": _calls("argmax", _configs(("BLOCK",), (16,), (32,), (128,)), {"VOCAB": 77}, {"VOCAB": 65}),
    "sample": _calls("sample", _configs(("BLOCK",), (16,)), {"VOCAB": 41}),
}
