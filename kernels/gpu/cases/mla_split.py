"""Calls of `mla_split`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, cut, first_distinct
from dsv2_compile.kernels.gpu.cases.mla_prefill import even
from dsv2_compile.kernels.gpu.check import Case, Tensors, always, normal
from dsv2_compile.kernels.gpu.kernel import Config, Dims
from dsv2_compile.kernels.gpu.mla_split import FIELDS, MLA_COMBINE, MLA_SCHEDULE, partial_rows, schedule
from dsv2_compile.plan.expr import evaluate

PAGE = 64
Positions = tuple[int, ...]


def _schedule_of(dims: Dims, positions: Positions) -> Case:
    page, parts, overhead = (int(dims[d]) for d in ("PAGE", "PARTS", "OVERHEAD"))
    name = f"positions {positions[:8]}, {len(positions)} rows, {parts} parts, overhead {overhead}, page {page}"
    return Case(
        name,
        MLA_SCHEDULE,
        dims,
        {"rows": len(positions)},
        lambda g: {"positions": torch.tensor(positions, dtype=torch.int32)},
        always(parts=(parts + 1, FIELDS)),
    )


def _schedule(positions: Positions, parts: int, overhead: int = 1, page: int = PAGE) -> Case:
    return _schedule_of({"PAGE": page, "PARTS": parts, "OVERHEAD": overhead}, positions)


def _combine_of(dims: Dims, positions: Positions, page: int = PAGE) -> Case:
    heads, latent, parts, rows = int(dims["HEADS"]), int(dims["LATENT"]), int(dims["PARTS"]), len(positions)
    slots = evaluate(partial_rows(rows, parts), {})

    def inputs(g: torch.Generator) -> Tensors:
        table = schedule(list(positions), page, parts, 1)
        partial, lse = normal(g, slots, heads, latent), normal(g, slots, heads, scale=8.0)
        used = int(table[-1, 4])
        partial[used:] = lse[used:] = float("nan")
        return {"partial": partial, "lse": lse, "parts": table}

    name = f"positions {positions[:8]}, {rows} rows, {parts} parts, {heads} heads of {latent}"
    return Case(name, MLA_COMBINE, dims, {"rows": rows}, inputs, always(out=(rows, heads, latent)))


def _combine(positions: Positions, parts: int, heads: int = 3, latent: int = 512, page: int = PAGE) -> Case:
    return _combine_of({"HEADS": heads, "LATENT": latent, "PARTS": parts}, positions, page)


def equal_positions(sizes: Mapping[str, int]) -> Positions:
    """Of ``rows`` sequences that are ``context`` long together."""
    context = sizes.get("context", 1024 * sizes["rows"])
    return tuple(max(n - 1, 0) for n in even(context, sizes["rows"]))


def uneven_positions(page: int, parts: int, block: int = 64, most: int = 1 << 20) -> Iterator[Positions]:
    """By turns few and many rows, at the edges of pages and of blocks of ``block`` keys, cut in few and in many pieces,
    padding rows; none above ``most``."""
    long = page * parts
    rows = next((r for r in (3, 4, 5, 7) if parts % r), 1)  # parts end inside of rows, where others begin
    lists: list[Positions] = [
        (0, 3 * page, 2, 2 * page + 1, page - 1, page),
        (page * max(2 * parts // rows, 3) + 1,) * rows,
        (2 * long + page // 2,),
        (-1, 5, -1, 5 * page - 1, -1),
        (block - 1, block, block + 1),
        (long // 2, 0, long + 1),
        (0,),
        (page * 9 - 1,) * 6,
        (7 * page, 1) * 3,
        (-1, -1),
        tuple(range(2, 5 * page, page // 2 + 3)),
        (page, long, page),
        (2 * page - 1, 4 * page - 1),
    ]
    for positions in [*lists, *((n, n * n) for n in range(1, 20))]:
        yield cut(positions, most)


def _maker(build: Callable[[Dims, Positions], Case]) -> Maker:
    def others(dims: Dims, sizes: Mapping[str, int], config: Config, limit: float) -> list[Case]:
        rows = config.get("BLOCK_R", 32)
        some = [tuple(range(0, 7 * (rows + 1), 7)), (300,) * (2 * rows + 1)]
        found = [build(dims, p) for p in [*some, *uneven_positions(int(dims.get("PAGE", PAGE)), int(dims["PARTS"]))]]
        return first_distinct(found, len(some) + 8)

    return Maker(lambda dims, sizes: build(dims, equal_positions(sizes)), others)


MAKERS = {"mla_schedule": _maker(_schedule_of), "mla_combine": _maker(_combine_of)}

CASES = {
    "mla_schedule": [
        _schedule((0,), 1),
        _schedule((0,), 132),
        _schedule((63,), 4),
        _schedule((64,), 4),
        _schedule((65, 62, 63, 64), 3),
        _schedule((40000,), 132),
        _schedule((-1, -1, -1), 5),
        _schedule((-1, 5, -1, 700, -1, -1), 4),
        _schedule((130, -1, -1, 9000, 3, 64, 63, 1), 7, overhead=5),
        _schedule((64 * 9 - 1,) * 6, 18, overhead=0),
        _schedule((64 * 9 - 1,) * 6, 19, overhead=0),
        _schedule((10, 20, 30, 40, 50), 2),
        _schedule(tuple(range(0, 70 * 97, 97)), 33, overhead=2),
        _schedule((31, 4000) * 40, 78),
        _schedule((100, 5, 77), 16, page=1),
    ],
    "mla_combine": [
        _combine((2000,), 4),
        _combine((64 * 40,), 40, heads=1),
        _combine((5, 64, 900), 8, heads=2),
        _combine((5, 6, 7), 1),
        _combine((0, 63), 8),
        _combine((-1, 700, -1, 700), 3, latent=48, heads=5),
        _combine((1000, 100, 2000, 3000), 9, latent=200, heads=2),
        _combine((130,), 132, heads=16, latent=128),
        _combine((3000, 70) * 3, 17, latent=33),
    ],
}
