"""Calls of `mla_paged`. All of the cache that no sequence uses is NaN, and unused entries of page tables point far
outside of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, cut, first_distinct
from dsv2_compile.kernels.gpu.cases.mla_prefill import Lengths, lengths_of
from dsv2_compile.kernels.gpu.cases.mla_split import equal_positions, uneven_positions
from dsv2_compile.kernels.gpu.check import Case, Tensors, always, normal
from dsv2_compile.kernels.gpu.kernel import Config, Dims
from dsv2_compile.kernels.gpu.mla_paged import MLA_DECODE, MLA_EXTEND
from dsv2_compile.kernels.gpu.mla_split import partial_rows, schedule
from dsv2_compile.plan.expr import evaluate

SPARE = 3
"""Pages that belong to nobody."""


def _dims(heads: int, latent: int, rope: int, page: int, lengths: list[int]) -> dict[str, Any]:
    pages = -(-max(lengths) // page) + 2
    scale = (latent // 4 + rope) ** -0.5
    return {"HEADS": heads, "LATENT": latent, "ROPE": rope, "PAGE": page, "MAX_PAGES": pages, "SCALE": scale}


def paged_cache(g: torch.Generator, dims: Dims, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cache and page table of sequences of ``lengths``, pages in no order."""
    page, width = int(dims["PAGE"]), int(dims["LATENT"]) + int(dims["ROPE"])
    counts = [-(-n // page) for n in lengths]
    order = torch.randperm(sum(counts) + SPARE, generator=g)
    values = normal(g, sum(lengths), width)
    cache = torch.full((len(order) * page, width), float("nan"), dtype=values.dtype)
    table = torch.full((len(lengths), int(dims["MAX_PAGES"])), 1 << 30, dtype=torch.int32)
    starts = zip(accumulate(counts, initial=0), accumulate(lengths, initial=0), strict=True)
    for b, (length, (first, start)) in enumerate(zip(lengths, starts, strict=False)):
        mine = order[first : first + counts[b]]
        table[b, : counts[b]] = mine.to(torch.int32)
        rows = (mine[:, None] * page + torch.arange(page)).flatten()[:length]
        cache[rows] = values[start : start + length]
    return cache, table


def _decode_of(dims: Dims, positions: tuple[int, ...], overhead: int = 1) -> Case:
    heads, latent, rope, page, parts = (int(dims[d]) for d in ("HEADS", "LATENT", "ROPE", "PAGE", "PARTS"))
    lengths, rows = [p + 1 for p in positions], len(positions)
    slots = evaluate(partial_rows(rows, parts), {})

    def inputs(g: torch.Generator) -> Tensors:
        order = torch.randperm(rows, generator=g)
        cache, table = paged_cache(g, dims, lengths)
        q = normal(g, rows, heads, latent + rope)
        q[torch.tensor(positions) < 0] = float("nan")
        poison = float("nan")
        return {
            "q": q,
            "cache": cache,
            "page_table": table[order],
            "positions": torch.tensor(positions, dtype=torch.int32),
            "sequence": order.argsort().to(torch.int32),
            "parts": schedule(list(positions), page, parts, overhead),
            "partial": torch.full((slots, heads, latent), poison, dtype=torch.float64),
            "lse": torch.full((slots, heads), poison, dtype=torch.float64),
        }

    name = f"positions {positions[:9]}, {rows} rows, {parts} parts, {heads} heads of {latent} and {rope}, page {page}"
    sizes = {"rows": rows, "context": sum(lengths)}
    return Case(name, MLA_DECODE, dims, sizes, inputs, always(out=(rows, heads, latent)))


def decode_case(
    positions: tuple[int, ...],
    parts: int,
    heads: int = 16,
    latent: int = 512,
    rope: int = 64,
    page: int = 64,
    overhead: int = 1,
) -> Case:
    dims = {**_dims(heads, latent, rope, page, [p + 1 for p in positions]), "PARTS": parts}
    return _decode_of(dims, positions, overhead)


def _extend_of(dims: Dims, queries: tuple[int, ...], past: tuple[int, ...], padding: int = 0) -> Case:
    """``past``: positions before the new ones, by sequence. ``padding``: rows after the last sequence."""
    heads, latent, rope, page = (int(dims[d]) for d in ("HEADS", "LATENT", "ROPE", "PAGE"))
    lengths = [p + n for p, n in zip(past, queries, strict=True)]
    rows = sum(queries) + padding

    def inputs(g: torch.Generator) -> Tensors:
        cache, table = paged_cache(g, dims, lengths)
        q = normal(g, rows, heads, latent + rope)
        q[rows - padding :] = float("nan")
        positions = [p + i for p, n in zip(past, queries, strict=True) for i in range(n)] + [-1] * padding
        return {
            "q": q,
            "cache": cache,
            "page_table": table,
            "query_start": torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
            "positions": torch.tensor(positions, dtype=torch.int32),
        }

    name = f"queries {queries} after {past}, {heads} heads of {latent} and {rope}, page {page}, {padding} padding"
    sizes = {"rows": rows, "batch": len(queries), "context": sum(lengths)}
    return Case(name, MLA_EXTEND, dims, sizes, inputs, always(out=(rows, heads, latent)))


def extend_case(
    queries: tuple[int, ...],
    past: tuple[int, ...],
    heads: int = 16,
    latent: int = 48,
    rope: int = 8,
    page: int = 64,
    max_batch: int = 8,
    padding: int = 0,
) -> Case:
    lengths = [p + n for p, n in zip(past, queries, strict=True)]
    return _extend_of({**_dims(heads, latent, rope, page, lengths), "MAX_BATCH": max_batch}, queries, past, padding)


def _longest(dims: Dims) -> int:
    """Positions that a page table has room for."""
    return int(dims["PAGE"]) * int(dims["MAX_PAGES"])


def _decode_others(dims: Dims, sizes: Mapping[str, int], config: Config, limit: float) -> list[Case]:
    lists = uneven_positions(int(dims["PAGE"]), int(dims["PARTS"]), config.get("BLOCK_N", 32), _longest(dims) - 1)
    found = (_decode_of(dims, positions, overhead=i % 4) for i, positions in enumerate(lists))
    return first_distinct(c for c in found if int(MLA_DECODE.cost(dims, c.sizes).flops) <= limit)


def _extends(page: int, m: int, n: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Queries, positions before them and padding, at the edges of pages and of blocks of ``m`` queries and ``n``
    keys."""
    yield (m + 1, 2, 1), (page - 1, 0, page), 0
    yield (4, 0, m), (0, 5, 2 * page + 1), 3
    yield (1,), (0,), 0
    yield (n, 2 * m + 1), (1, n - 1), 1
    yield (1, 1, 1, 1, 1), (0, page - 1, page, 2 * page, n), 0
    yield (2 * m, 3), (3, 3 * page - 1), 2
    yield (page + 1,), (0,), 0
    yield (0, 3), (7, 2 * n), 5
    yield (0,), (0,), 4
    yield from (((r,), (r * r % (2 * page),), 0) for r in range(2, 20))


def _extend_others(dims: Dims, sizes: Mapping[str, int], config: Config, limit: float) -> list[Case]:
    most, longest = int(dims["MAX_BATCH"]), _longest(dims)
    found = []
    for queries, past, padding in _extends(int(dims["PAGE"]), config.get("QUERY_TILE", 4), config.get("BLOCK_N", 32)):
        new = cut(queries[:most], longest)
        before = tuple(min(p, longest - n) for p, n in zip(past[:most], new, strict=True))
        found.append(_extend_of(dims, new, before, padding))
    return first_distinct(c for c in found if int(MLA_EXTEND.cost(dims, c.sizes).flops) <= limit)


def _extend_same(dims: Dims, sizes: Mapping[str, int]) -> Case:
    """In more sequences where the page tables of so few have no room for all."""
    lengths: Lengths = lengths_of({**sizes, "batch": max(sizes["batch"], -(-sizes["context"] // _longest(dims)))})
    return _extend_of(dims, *lengths)


MAKERS = {
    "mla_decode": Maker(lambda dims, sizes: _decode_of(dims, equal_positions(sizes), overhead=2), _decode_others),
    "mla_extend": Maker(_extend_same, _extend_others),
}

SMALL = {"latent": 48, "rope": 8}

CASES = {
    "mla_decode": [
        decode_case((0,), 1),
        decode_case((62, 63, 64, 65), 3, **SMALL),
        decode_case((200,), 4),
        decode_case((0, 700, 3, 129, 64), 5, heads=3, **SMALL),
        decode_case((-1, 5, -1, 300, -1), 3, heads=1, **SMALL),
        decode_case((-1, -1), 4, **SMALL),
        decode_case((1500,), 16, **SMALL),
        decode_case((130, 70), 2, heads=128),
        decode_case((63, 127), 132, heads=16, **SMALL),
        decode_case((10, 20, 30, 40, 50), 2, heads=20, **SMALL),
        decode_case((100, 37, 5), 3, page=16, heads=5, latent=33, rope=16),
        decode_case((50, 11), 4, page=1, heads=2, latent=16, rope=4),
        decode_case((90, 200), 5, page=48, **SMALL),
        decode_case((640,) * 3, 7, overhead=5, heads=40, **SMALL),
    ],
    "mla_extend": [
        extend_case((1,), (0,)),
        extend_case((70,), (0,), heads=3),
        extend_case((5,), (400,), latent=512, rope=64),
        extend_case((1, 9, 1, 17), (63, 64, 500, 0)),
        extend_case((4, 0, 3), (0, 5, 65), heads=1),
        extend_case((3,), (62,), heads=128, latent=128, rope=64),
        extend_case((2, 1), (63, 127), heads=40, padding=5),
        extend_case((0, 0), (0, 3), padding=3),
        extend_case((33, 31), (31, 33), page=16, heads=5, latent=33, rope=16),
        extend_case((1,) * 8, tuple(range(0, 80, 10)), heads=2, page=1, latent=16, rope=4),
    ],
}
