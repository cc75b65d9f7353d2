"""Calls of `mla_prefill`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, first_distinct
from dsv2_compile.kernels.gpu.check import Case, Tensors, always, normal
from dsv2_compile.kernels.gpu.kernel import Config, Dims
from dsv2_compile.kernels.gpu.mla_prefill import MLA_PREFILL

Lengths = tuple[tuple[int, ...], tuple[int, ...]]
"""New rows, and cached ones before them, by sequence."""


def _of(dims: Dims, queries: tuple[int, ...], cached: tuple[int, ...]) -> Case:
    heads, nope, rope, v, latent = (int(dims[d]) for d in ("HEADS", "NOPE", "ROPE", "V", "LATENT"))
    contexts = [n + c for n, c in zip(queries, cached, strict=True)]
    rows, context, width = sum(queries), sum(contexts), heads * (nope + rope)

    def inputs(g: torch.Generator) -> Tensors:
        slots = torch.randperm(context + 9, generator=g)[:context]
        q = torch.full((rows, int(dims["Q_ROW"])), float("nan"), dtype=torch.float64)
        q[:, :width] = normal(g, rows, width, scale=2.0)
        cache = torch.full((context + 9, latent + rope), float("nan"), dtype=torch.float64)
        cache[slots, latent:] = normal(g, context, rope).double()
        return {
            "q": q,
            "kv": normal(g, context, heads * (nope + v)),
            "cache": cache,
            "slots": slots.to(torch.int32),
            "query_start": torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
            "context_start": torch.tensor([0, *accumulate(contexts)], dtype=torch.int32),
        }

    name = f"queries {queries} after {cached}, {heads} heads of {(nope, rope, v)}"
    name += f", {int(dims['Q_ROW']) - width} beside" * (int(dims["Q_ROW"]) != width)
    sizes = {"rows": rows, "batch": len(queries), "context": context}
    return Case(name, MLA_PREFILL, dims, sizes, inputs, always(out=(rows, heads * v)))


def _case(
    queries: tuple[int, ...],
    cached: tuple[int, ...] | None = None,
    heads: int = 1,
    head: tuple[int, int, int] = (128, 64, 128),
    latent: int = 16,
    max_batch: int = 64,
    beside: int = 0,
) -> Case:
    """``queries`` and ``cached``: rows by sequence. ``head``: NOPE, ROPE, V. ``beside``: other values in a row of q."""
    nope, rope, v = head
    dims = {
        "HEADS": heads,
        "NOPE": nope,
        "ROPE": rope,
        "V": v,
        "LATENT": latent,
        "Q_ROW": heads * (nope + rope) + beside,
        "SCALE": (nope + rope) ** -0.5,
        "MAX_BATCH": max_batch,
    }
    return _of(dims, queries, cached or (0,) * len(queries))


def even(total: int, count: int) -> tuple[int, ...]:
    """``total`` in ``count`` parts as equal as can be."""
    return tuple(total // count + (i < total % count) for i in range(count))


def lengths_of(sizes: Mapping[str, int]) -> Lengths:
    """Of equal sequences, of ``rows`` and ``context`` together."""
    rows, batch = sizes["rows"], sizes["batch"]
    queries, contexts = even(rows, batch), even(max(sizes["context"], rows), batch)
    return queries, tuple(max(c - q, 0) for q, c in zip(queries, contexts, strict=True))


def _same(dims: Dims, sizes: Mapping[str, int]) -> Case:
    return _of(dims, *lengths_of(sizes))


def _lengths(m: int, n: int) -> Iterator[Lengths]:
    """At the edges of blocks of ``m`` queries and ``n`` keys."""
    yield (m + 1, 1, m - 1), (n - 1, 0, n + 1)
    yield (5, 0, 7, 1), (0, 3, n, 3 * n + 8)
    yield (m, m), (n - 3, n // 2 + 1)  # the diagonal of a tile goes through two blocks of keys
    yield (1,), (0,)
    yield (m,), (2 * n,)
    yield (2, n + 1), (2 * n - 1, 0)
    yield (1, 1, 1, 1, 1), (0, 1, n - 1, n, n + 1)
    yield (n,), (1,)
    yield (2 * m, 3), (3, 4 * n + 1)
    yield (0, 2), (5, 0)
    yield (2 * m + 1,), (0,)
    yield from (((r,), (r * r % (2 * n),)) for r in range(2, 20))


def _others(dims: Dims, sizes: Mapping[str, int], config: Config, limit: float) -> list[Case]:
    most = int(dims["MAX_BATCH"])
    found = (
        _of(dims, queries[:most], cached[:most])
        for queries, cached in _lengths(config.get("BLOCK_M", 64), config.get("BLOCK_N", 64))
        if sum(queries[:most])
    )
    return first_distinct(
        c for c in found if int(MLA_PREFILL.cost(dims, c.sizes).flops) <= limit or c.sizes["rows"] < 8
    )


MAKERS = {"mla_prefill": Maker(_same, _others)}

CASES = {
    "mla_prefill": [
        _case((1,)),
        _case((129,), heads=2),
        _case((64, 1, 63), latent=512),
        _case((5, 0, 7, 1), (0, 3, 64, 200), heads=3, head=(24, 8, 20), latent=48),
        _case((200, 130), (1, 0), head=(16, 8, 16), max_batch=2),
        _case((127, 129), (63, 65), head=(32, 16, 48)),
        _case((3,), (300,), heads=2),
        _case((5, 1), (62, 63), head=(16, 8, 16)),
        _case((1,) * 9, tuple(range(9)), head=(16, 4, 8), max_batch=9),
        _case((128, 128), (64, 128), head=(8, 2, 1), latent=1),
        _case((0, 0, 2), (0, 5, 0), heads=5, head=(40, 16, 33)),
        _case((257,), (127,), head=(64, 32, 64)),
        _case((70,), (3,), heads=2, head=(32, 16, 32), beside=80),
    ],
}
