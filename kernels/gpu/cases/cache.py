"""Calls of `cache`."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.cache import LATENT_CACHE, ROPE_QUERY
from dsv2_compile.kernels.gpu.check import Case, Tensors, normal

PAGE = 64


def _tables(g: torch.Generator, positions: int, rope: int) -> Tensors:
    angles = torch.rand((positions, rope // 2), generator=g, dtype=torch.float64) * 6.28
    return {"cos": angles.cos(), "sin": angles.sin()}


def _latent_cache(
    rows: int,
    latent: int,
    rope: int,
    stride: int | None = None,
    pages: int = 2,
    padding: int = 0,
    slots: tuple[int, ...] | None = None,
) -> Case:
    """``padding``: as many of the last rows have no slot and no position."""
    stride = stride or latent + rope
    dims = {"LATENT": latent, "ROPE": rope, "KV_STRIDE": stride, "EPS": 1e-6}

    def inputs(g: torch.Generator) -> Tensors:
        at = torch.randperm(pages * PAGE, generator=g)[:rows] if slots is None else torch.tensor(slots)
        at = at.to(torch.int32)
        positions = torch.randint(9, (rows,), generator=g, dtype=torch.int32)
        if padding:
            at[-padding:] = positions[-padding:] = -1
        return {
            "kv": normal(g, rows, stride, scale=3.0),
            "weight": normal(g, latent) + 1,
            **_tables(g, 9, rope),
            "positions": positions,
            "slots": at,
            "cache": torch.full((pages * PAGE, latent + rope), float("nan"), dtype=torch.float64),
        }

    name = f"{rows} rows of {latent} + {rope}, stride {stride}" + f", {padding} padding" * bool(padding)
    name += f", slots {slots}" * bool(slots)
    return Case(name, LATENT_CACHE, dims, {"rows": rows}, inputs, {})


def _rope_query(
    rows: int, heads: int, nope: int, rope: int, extra: int = 0, out: tuple[int, int] | None = None, padding: int = 0
) -> Case:
    """``extra``: unused values at the end of q's rows. ``out``: values in front of and behind each head's result."""
    before, after = out or (nope, 0)
    head = before + rope + after
    dims = {
        "HEADS": heads,
        "NOPE": nope,
        "ROPE": rope,
        "Q_ROW": heads * (nope + rope) + extra,
        "OUT_ROW": heads * head,
        "OUT_HEAD": head,
        "OUT_OFFSET": before,
    }

    def inputs(g: torch.Generator) -> Tensors:
        positions = torch.randint(9, (rows,), generator=g, dtype=torch.int32)
        if padding:
            positions[-padding:] = -1
        return {"q": normal(g, rows, int(dims["Q_ROW"])), **_tables(g, 9, rope), "positions": positions}

    name = f"{rows} rows, {heads} heads, {nope} + {rope}, {extra} extra, {padding} padding, out {before} {after}"
    return Case(name, ROPE_QUERY, dims, {"rows": rows}, inputs, {"out": (rows, int(dims["OUT_ROW"]))})


CASES = {
    "latent_cache": [
        _latent_cache(1, 512, 64),
        _latent_cache(5, 512, 64, stride=2112),
        _latent_cache(3, 512, 64, slots=(63, 64, 127)),
        _latent_cache(7, 48, 8, padding=2),
        _latent_cache(4, 33, 2, stride=37),
        _latent_cache(2, 16, 8, padding=2),
        _latent_cache(64, 24, 16, pages=1),
        _latent_cache(6, 40, 12, stride=64, pages=3),
        _latent_cache(1, 1, 2, slots=(0,)),
        _latent_cache(2, 64, 32, slots=(191, 0), pages=3),
    ],
    "rope_query": [
        _rope_query(1, 16, 128, 64),
        _rope_query(3, 128, 128, 64, out=(512, 0)),
        _rope_query(2, 3, 16, 8, extra=5),
        _rope_query(5, 5, 24, 8, padding=2),
        _rope_query(1, 1, 1, 2),
        _rope_query(4, 33, 8, 12, out=(48, 0)),
        _rope_query(9, 7, 32, 16, out=(3, 2)),
        _rope_query(2, 64, 64, 32, out=(0, 0), padding=1),
        _rope_query(6, 2, 0, 4, extra=1),
    ],
}
