"""Calls of `mla_prefill`."""

from __future__ import annotations

from itertools import accumulate

import torch

from dsv2_compile.kernels.gpu.check import Case, Tensors, normal
from dsv2_compile.kernels.gpu.mla_prefill import MLA_PREFILL


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
    cached = cached or (0,) * len(queries)
    contexts = [n + c for n, c in zip(queries, cached, strict=True)]
    rows, context = sum(queries), sum(contexts)
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

    def inputs(g: torch.Generator) -> Tensors:
        return {
            "q": normal(g, rows, heads * (nope + rope) + beside, scale=2.0),
            "kv": normal(g, context, heads * (nope + v)),
            "cache": normal(g, context + 9, latent + rope),
            "slots": torch.randperm(context + 9, generator=g)[:context].to(torch.int32),
            "query_start": torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
            "context_start": torch.tensor([0, *accumulate(contexts)], dtype=torch.int32),
        }

    name = f"queries {queries} after {cached}, {heads} heads of {head}" + f", {beside} beside" * bool(beside)
    sizes = {"rows": rows, "batch": len(queries), "context": context}
    return Case(name, MLA_PREFILL, dims, sizes, inputs, {"out": (rows, heads * v)})


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
