"""Absorbed MLA over a paged latent cache: one new row per sequence, split over parts, and several rows, unsplit.

The meaning is that of `mla_absorbed`. ``cache`` *T [pages * PAGE, LATENT + ROPE] of one layer, position t of a
sequence in row page * PAGE + t % PAGE; ``page_table`` i32 [sequences, MAX_PAGES]: page numbers; ``q`` *T
[rows, HEADS, LATENT + ROPE], absorbed and rotated; ``out`` *T [rows, HEADS, LATENT]. A row at position t sees the
cache's positions 0 to t, its own among them. SCALE multiplies scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_attention
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.gpu.source import mla_paged as source
from dsv2_compile.kernels.gpu.work import Work
from dsv2_compile.kernels.ops.attention import mla_absorbed
from dsv2_compile.plan.expr import cdiv
from dsv2_compile.targets import Architecture, Target

_MODEL = ("HEADS", "LATENT", "ROPE", "PAGE", "MAX_PAGES", "SCALE")

_NARROW: Config = {"BLOCK_H": 16, "BLOCK_N": 32, "CHUNKS": 1, "SWAP": 0, "num_warps": 4, "num_stages": 3}
_MIDDLE: Config = {"BLOCK_H": 32, "BLOCK_N": 32, "CHUNKS": 2, "SWAP": 0, "num_warps": 8, "num_stages": 3}
_WIDE: Config = {**_MIDDLE, "BLOCK_H": 64}
_SMALL_SHARED: Config = {**_MIDDLE, "BLOCK_N": 16}
"""None was timed. For latents of 512: the most heads whose sums stay in registers, with one tile being loaded while
one is computed; at 16 heads, by arithmetic, the cache's bandwidth is the limit, so that blocks which share an SM
should matter more than wgmma.
Tensor memory is too small for 64 heads by 512 columns beside the scores."""


def _widest(arch: Architecture) -> Config:
    if not arch.large_shared:
        return _SMALL_SHARED
    return _MIDDLE if arch.tensor_memory else _WIDE


def _wide(dims: Dims, target: Target) -> Config:
    few = target.architecture.large_shared and dims["HEADS"] <= 32
    return _MIDDLE if few else _widest(target.architecture)


def _tiles(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    """Columns padded for matrix products, which take 16 at least."""
    return {
        **{name: dims[name] for name in _MODEL},
        "BLOCK_N": config["BLOCK_N"],
        "BLOCK_L": max(16 * config["CHUNKS"], next_power_of_2(int(dims["LATENT"]))),
        "BLOCK_R": max(16, next_power_of_2(int(dims["ROPE"]))),
        "CHUNKS": config["CHUNKS"],
    }


def _work(of: Callable[..., Work]) -> Callable[[Dims, Config, Mapping[str, int]], Work]:
    def work(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
        latent = max(16 * config["CHUNKS"], next_power_of_2(int(dims["LATENT"])))
        return of(dims, config, sizes, latent, max(16, next_power_of_2(int(dims["ROPE"]))))

    return work


def _decode_constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**_tiles(dims, config), "BLOCK_H": config["BLOCK_H"], "SWAP": bool(config["SWAP"])}


def _decode_grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (int(dims["PARTS"]), cdiv(int(dims["HEADS"]), config["BLOCK_H"]))


def _decode_default(dims: Dims, target: Target) -> Config:
    return _NARROW if dims["HEADS"] <= 16 else _wide(dims, target)


def parts_for(dims: Dims, target: Target) -> int:
    """Parts with which the default config has as many programs as fit ``target`` at once.

    By shared memory at 2 bytes an element, and by registers, which are enough for 12 warps of 168."""
    config, arch = _decode_default(dims, target), target.architecture
    tiles = _decode_constants(dims, config)
    warpgroup = arch.shared_operands and config["BLOCK_H"] >= 64
    buffers = config["num_stages"] - (not warpgroup)
    width = int(tiles["BLOCK_L"]) + int(tiles["BLOCK_R"])
    shared = 2 * width * (config["BLOCK_H"] + config["BLOCK_N"] * buffers) + arch.shared_reserved
    blocks = max(1, min(arch.shared_per_sm // shared, 12 // config["num_warps"]))
    return max(1, target.sms * blocks // -(-int(dims["HEADS"]) // config["BLOCK_H"]))


def _keys(cache: torch.Tensor, pages: torch.Tensor, page: int, begin: int, end: int) -> torch.Tensor:
    """Positions begin <= t < end of a sequence."""
    at = torch.arange(begin, end)
    return cache[pages.long()[at // page] * page + at % page]


def _attend(dims: Dims, q: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """q [S, HEADS, W] are the last rows of ``keys`` [P + S, W] -> [S, HEADS, LATENT]."""
    new = len(q)
    past = torch.tensor([len(keys) - new])
    latent, scale = int(dims["LATENT"]), float(dims["SCALE"])
    out: torch.Tensor = mla_absorbed(q[None], keys[None, :-new], keys[None, -new:], past, scale, latent)
    return out[0]


def _decode_reference(
    dims: Dims,
    sizes: Mapping[str, int],
    q: torch.Tensor,
    cache: torch.Tensor,
    page_table: torch.Tensor,
    positions: torch.Tensor,
    sequence: torch.Tensor,
    parts: torch.Tensor,
    partial: torch.Tensor,
    lse: torch.Tensor,
) -> dict[str, Any]:
    page = int(dims["PAGE"])
    out = torch.full((sizes["rows"], q.shape[1], int(dims["LATENT"])), float("nan"), dtype=q.dtype)
    out[positions < 0] = 0
    partial, lse = torch.full_like(partial, float("nan")), torch.full_like(lse, float("nan"))
    for (first, first_block, slot, *_), (last, last_block, next_slot, *_) in pairwise(parts.tolist()):
        for row in range(first, min(last + 1, sizes["rows"])):
            length = int(positions[row]) + 1
            begin = first_block * page if row == first else 0
            end = min(last_block * page, length) if row == last else length
            if begin >= end:
                continue
            keys = _keys(cache, page_table[sequence[row]], page, begin, end).to(q.dtype)
            value = _attend(dims, q[row : row + 1], keys)[0]
            if (begin, end) == (0, length):
                out[row] = value
            else:
                at = slot if begin else next_slot - 1
                partial[at] = value
                lse[at] = (q[row] @ keys.T * float(dims["SCALE"])).logsumexp(-1) / math.log(2)
    return {"out": out, "partial": partial, "lse": lse}


def _pairs_cost(dims: Dims, rows: int, read: int, pairs: int) -> Cost:
    heads, latent, rope = (int(dims[n]) for n in ("HEADS", "LATENT", "ROPE"))
    traffic = 2 * (read * (latent + rope) + rows * heads * (2 * latent + rope))
    return Cost(traffic, 2 * heads * pairs * (2 * latent + rope))


def _decode_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    """``sizes["context"]``: positions seen by all rows together; without it, full page tables."""
    context = sizes.get("context", sizes["rows"] * int(dims["MAX_PAGES"]) * int(dims["PAGE"]))
    return _pairs_cost(dims, sizes["rows"], context, context)


MLA_DECODE = register(
    Kernel(
        name="mla_decode",
        fn=source.mla_decode,
        args={
            "q": "*T",
            "cache": "*T",
            "page_table": "*i32",
            "positions": "*i32",
            "sequence": "*i32",
            "parts": "*i32",
            "partial": "*fp32",
            "lse": "*fp32",
            "out": "*T",
            "rows": "i32",
        },
        outputs=("out", "partial", "lse"),
        constants=_decode_constants,
        grid=_decode_grid,
        space={
            "BLOCK_H": (16, 32, 64),
            "BLOCK_N": (16, 32, 64, 128),
            "CHUNKS": (1, 2, 4),
            "SWAP": (0, 1),
            "num_warps": (4, 8),
            "num_stages": (1, 2, 3, 4),
        },
        default=_decode_default,
        reference=_decode_reference,
        cost=_decode_cost,
        work=_work(work_attention.decode),
        shape=("rows", "context"),
        roundings={"out": 2, "partial": 1},
    )
)
"""positions, sequence i32 [rows]: where row r is, -1 for a padding row (out is zero, nothing is read), and its row of
page_table. parts: of `mla_schedule` for the same positions. A row that is cut writes its pieces to partial fp32
[slots, HEADS, LATENT] and lse fp32 [slots, HEADS], log2 of the sum of exp(score), and not to out; `mla_combine` does.
dims: HEADS, LATENT, ROPE, PAGE, MAX_PAGES, SCALE, PARTS.

SWAP computes K Q^T and V^T P^T, in which positions and columns are on the side that wgmma wants 64 of. num_stages
below 3 loads a tile after the one before it is done."""


def _extend_constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {
        **_tiles(dims, config),
        "MAX_BATCH": next_power_of_2(int(dims["MAX_BATCH"])),
        "QUERY_TILE": config["QUERY_TILE"],
        "BLOCK_H": config["BLOCK_H"],
    }


def _extend_grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (cdiv(sizes["rows"], config["QUERY_TILE"]) + sizes["batch"], cdiv(int(dims["HEADS"]), config["BLOCK_H"]))


def _extend_default(dims: Dims, target: Target) -> Config:
    """As many pairs of query and head as decode has heads in its widest tile."""
    config = dict(_widest(target.architecture))
    del config["SWAP"]
    pairs = config["BLOCK_H"]
    heads = min(pairs, next_power_of_2(int(dims["HEADS"])))
    return {**config, "BLOCK_H": heads, "QUERY_TILE": pairs // heads}


def _extend_reference(
    dims: Dims,
    sizes: Mapping[str, int],
    q: torch.Tensor,
    cache: torch.Tensor,
    page_table: torch.Tensor,
    query_start: torch.Tensor,
    positions: torch.Tensor,
) -> dict[str, Any]:
    out = torch.zeros(sizes["rows"], q.shape[1], int(dims["LATENT"]), dtype=q.dtype)
    for b in range(sizes["batch"]):
        new = slice(int(query_start[b]), int(query_start[b + 1]))
        if new.start < new.stop:
            keys = _keys(cache, page_table[b], int(dims["PAGE"]), 0, int(positions[new.stop - 1]) + 1)
            out[new] = _attend(dims, q[new], keys.to(q.dtype))
    return {"out": out}


def _extend_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    """``sizes["context"]``: positions of all sequences together, new rows included, of one length each; without
    it, full page tables."""
    rows, batch = sizes["rows"], sizes["batch"]
    context = sizes.get("context", batch * int(dims["MAX_PAGES"]) * int(dims["PAGE"]))
    return _pairs_cost(dims, rows, context, rows * (2 * context - rows + batch) // (2 * batch))


MLA_EXTEND = register(
    Kernel(
        name="mla_extend",
        fn=source.mla_extend,
        args={
            "q": "*T",
            "cache": "*T",
            "page_table": "*i32",
            "query_start": "*i32",
            "positions": "*i32",
            "out": "*T",
            "rows": "i32",
            "batch": "i32",
        },
        outputs=("out",),
        constants=_extend_constants,
        grid=_extend_grid,
        space={
            "QUERY_TILE": (1, 2, 4, 8, 16, 32, 64),
            "BLOCK_H": (1, 2, 4, 8, 16, 32, 64),
            "BLOCK_N": (16, 32, 64, 128),
            "CHUNKS": (1, 2, 4),
            "num_warps": (4, 8),
            "num_stages": (1, 2, 3, 4),
        },
        default=_extend_default,
        reference=_extend_reference,
        cost=_extend_cost,
        work=_work(work_attention.extend),
        shape=("rows", "batch", "context"),
        roundings={"out": 2},
    )
)
"""query_start i32 [batch + 1]: first row of each sequence, whose rows are at consecutive positions (i32 [rows]) and
whose page table is row b of page_table. Rows from query_start[batch] on are padding: out is zero, nothing is read.
dims: HEADS, LATENT, ROPE, PAGE, MAX_PAGES, SCALE, MAX_BATCH (a bound of batch)."""
