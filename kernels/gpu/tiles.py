"""Tiles of a matrix product for a number of rows, a weight and a GPU. Guesses to start tuning from, none was timed."""

from __future__ import annotations

from dataclasses import dataclass

from dsv2_compile.kernels.gpu.kernel import next_power_of_2
from dsv2_compile.plan.expr import cdiv, evaluate
from dsv2_compile.targets import Target

PART = 128
"""Split K: every part but the last is a multiple of this, whatever BLOCK_K is."""

_SHAPES = (
    (16, ((16, 64), (16, 32), (16, 16)), 128),
    (32, ((32, 64), (32, 32)), 128),
    (64, ((64, 64), (64, 32)), 128),
    (1 << 62, ((128, 128), (128, 64), (64, 64)), 64),
)
"""Up to so many rows: (BLOCK_M, BLOCK_N) from large to small, BLOCK_K."""
_SUMS, _FEWER_SUMS = 128 * 256, 128 * 128
"""fp32 sums of a block of 8 warps; fewer where matrix instructions take operands from registers, or they spill."""
_DOT_PRODUCT = 4096
"""Weights that a block of a single row loads at once: 8 KiB in flight in each of several blocks per SM."""


@dataclass(frozen=True)
class Product:
    """``rows`` times ``weights`` matrices [n, k] that share a block (gate and up), ``batch`` times (heads).
    ``split``: parts of K; None lets `tiles` choose."""

    rows: int
    n: int
    k: int
    weights: int = 1
    batch: int = 1
    split: int | None = 1


def part_of(k: int, split: int) -> int:
    """Elements of K in a part; the last parts may be shorter or empty."""
    return PART * -(-k // (split * PART))


def tiles(product: Product, target: Target) -> dict[str, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, SPLIT_K, GROUP_M, num_warps, num_stages for 2-byte types.

    The largest tile that gives every SM a block, else the smallest. K is split where K is long against N: from
    8192 on, or from 4096 on if K >= 0.6 N, the rule of TensorRT-LLM's sweep of skinny products; then the tile
    stays large. One row takes no tensor cores.
    """
    if product.rows == 1:
        return _one_row(product)
    candidates, block_k = next((s, k) for most, s, k in _SHAPES if product.rows <= most)
    sums = _SUMS if target.architecture.shared_operands else _FEWER_SUMS
    shapes = [(m, n) for m, n in candidates if m * n * product.weights <= sums]
    long = product.k >= 8192 or (product.k >= 4096 and product.k >= 0.6 * product.n)
    split = product.split or 1
    m, n = shapes[0]
    if split == 1 and not (long and product.split is None):
        m, n = next((s for s in shapes if _blocks(product, *s) >= target.sms), shapes[-1])
    elif product.split is None:
        while _blocks(product, m, n) * split < target.sms and product.k // (2 * split) >= 2 * PART:
            split *= 2
        split = -(-product.k // part_of(product.k, split))
    n, k = min(n, max(16, next_power_of_2(product.n))), min(block_k, max(16, next_power_of_2(product.k)))
    stage = 2 * k * (m + n * product.weights)
    return {
        "BLOCK_M": m,
        "BLOCK_N": n,
        "BLOCK_K": k,
        "SPLIT_K": split,
        "GROUP_M": 8,
        "num_warps": 8 if m * n * product.weights >= 128 * 128 else 4,
        "num_stages": max(1, min(4, target.architecture.shared_per_block // stage)),
    }


def _blocks(product: Product, block_m: int, block_n: int) -> int:
    return product.batch * evaluate(cdiv(product.rows, block_m), {}) * evaluate(cdiv(product.n, block_n), {})


def _one_row(product: Product) -> dict[str, int]:
    widest = next((k for k in (1024, 512, 256, 128) if product.k % k == 0), 512)
    k = min(widest, next_power_of_2(product.k))
    n = min(_DOT_PRODUCT // (k * product.weights), next_power_of_2(product.n))
    return {
        "BLOCK_M": 1,
        "BLOCK_N": n,
        "BLOCK_K": k,
        "SPLIT_K": product.split or 1,
        "GROUP_M": 8,
        "num_warps": 4,
        "num_stages": 1,
    }
