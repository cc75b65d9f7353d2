"""Calls of `cache`."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.cache import LATENT_CACHE, ROPE_QUERY
from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows, padded
from dsv2_compile.kernels.gpu.check import Case, Tensors, always, normal
from dsv2_compile.kernels.gpu.kernel import Dims

PAGE = 64
POSITIONS = 9


def _tables(g: torch.Generator, positions: int, rope: int) -> Tensors:
    angles = torch.rand((positions, rope // 2), generator=g, dtype=torch.float64) * 6.28
    return {"cos": angles.cos(), "sin": angles.sin()}


def _positions(g: torch.Generator, rows: int, padding: int, known: int = POSITIONS) -> torch.Tensor:
    """The first and the last one among them."""
    at = torch.randint(known, (rows,), generator=g, dtype=torch.int32)
    at[0], at[(rows - padding) // 2] = known - 1, 0
    at[rows - padding :] = -1
    return at


def _latent(
    dims: Dims, rows: int, pages: int, padding: int = 0, slots: tuple[int, ...] | None = None, scale: float = 3.0
) -> Case:
    """``padding``: as many of the last rows have no slot and no position. ``slots``: where the rows go."""
    latent, rope = int(dims["LATENT"]), int(dims["ROPE"])

    def inputs(g: torch.Generator) -> Tensors:
        at = torch.randperm(pages * PAGE, generator=g)[:rows] if slots is None else torch.tensor(slots)
        at = at.to(torch.int32)
        at[rows - padding :] = -1
        return {
            "kv": padded(g, rows, latent + rope, int(dims["KV_STRIDE"]), scale=scale),
            "weight": normal(g, latent) + 1,
            **_tables(g, POSITIONS, rope),
            "positions": _positions(g, rows, padding),
            "slots": at,
            "cache": torch.full((pages * PAGE, latent + rope), float("nan"), dtype=torch.float64),
        }

    name = f"{rows} rows of {latent} + {rope}, stride {dims['KV_STRIDE']}" + f", {padding} padding" * bool(padding)
    name += f", slots {slots}" * bool(slots) + f", {pages} pages, scale {scale:g}"
    return Case(name, LATENT_CACHE, dims, {"rows": rows}, inputs, always())


def _latent_cache(
    rows: int,
    latent: int,
    rope: int,
    stride: int | None = None,
    pages: int = 2,
    padding: int = 0,
    slots: tuple[int, ...] | None = None,
) -> Case:
    dims = {"LATENT": latent, "ROPE": rope, "KV_STRIDE": stride or latent + rope, "EPS": 1e-6}
    return _latent(dims, rows, pages, padding, slots)


def _build_latent(dims: Dims, rows: int, pattern: int) -> Case:
    """All in places, in as many pages as there are rows for or more, padding rows, in order from the last row on."""
    pages = -(-rows // PAGE) + (1, 0, 2, 1, 0)[pattern]
    padding = (0, 0, rows // 3, rows, 0)[pattern]
    slots = tuple(range(rows - 1, -1, -1)) if pattern == 4 else None
    return _latent(dims, rows, pages, padding, slots, 1e-3 if pattern == 1 else 3.0)


def _query(dims: Dims, rows: int, padding: int = 0) -> Case:
    width = int(dims["HEADS"]) * (int(dims["NOPE"]) + int(dims["ROPE"]))

    def inputs(g: torch.Generator) -> Tensors:
        return {
            "q": padded(g, rows, width, int(dims["Q_ROW"])),
            **_tables(g, POSITIONS, int(dims["ROPE"])),
            "positions": _positions(g, rows, padding),
        }

    heads, nope, rope, before = (int(dims[d]) for d in ("HEADS", "NOPE", "ROPE", "OUT_OFFSET"))
    after = int(dims["OUT_HEAD"]) - before - rope
    name = f"{rows} rows, {heads} heads, {nope} + {rope}, {int(dims['Q_ROW']) - width} extra, {padding} padding"
    name += f", out {before} {after}"
    return Case(name, ROPE_QUERY, dims, {"rows": rows}, inputs, always(out=(rows, int(dims["OUT_ROW"]))))


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
    return _query(dims, rows, padding)


def _build_query(dims: Dims, rows: int, pattern: int) -> Case:
    return _query(dims, rows, (0, rows // 3, 0, rows)[pattern])


MAKERS: dict[str, Maker] = {
    "latent_cache": by_rows(LATENT_CACHE, _build_latent, 5),
    "rope_query": by_rows(ROPE_QUERY, _build_query, 4),
}

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
