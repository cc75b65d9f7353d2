"""Norms, the embedding, cache rows and rotated queries."""

from __future__ import annotations

from types import SimpleNamespace

from tests.planted_edits.core import ADDED, MASK, ORDER, PLACE, SCALE, STALE, TAIL, TILE, beyond, edit, several


def _unequal(n: SimpleNamespace) -> bool:
    return n.BLOCK != n.N


# fmt: off
EDITS = [
    edit("rms_norm", "rms_norm", MASK, "read beyond N", "X_STRIDE + at, mask=inside, other=0.0)", "X_STRIDE + at)",
        _unequal),
    edit("rms_norm", "rms_norm", MASK, "stored beyond N", "w).to(out.dtype.element_ty), mask=inside)",
        "w).to(out.dtype.element_ty))", _unequal),
    edit("rms_norm", "rms_norm", STALE, "last column not stored", "w).to(out.dtype.element_ty), mask=inside)",
        "w).to(out.dtype.element_ty), mask=at < N - 1)"),
    edit("rms_norm", "rms_norm", TAIL, "last column not in the sum", "tl.sum(value * value, 0)",
        "tl.sum(tl.where(at < N - 1, value * value, 0.0), 0)"),
    edit("rms_norm", "rms_norm", SCALE, "mean of the block", "/ N + EPS", "/ BLOCK + EPS", _unequal),
    edit("rms_norm", "rms_norm", SCALE, "no epsilon", "/ N + EPS", "/ N"),
    edit("rms_norm", "rms_norm", PLACE, "x taken for dense", "source * X_STRIDE", "source * N",
        lambda n: n.X_STRIDE != n.N),
    edit("rms_norm", "rms_norm", PLACE, "residual of the row", "residual + source * N", "residual + row * N",
        lambda n: n.RESIDUAL and n.INDEXED),
    edit("rms_norm", "rms_norm", PLACE, "index of the first", "tl.load(index + row)", "tl.load(index + row // 2)",
        lambda n: n.INDEXED),
    edit("rms_norm", "rms_norm", STALE, "first sum not stored", "stored, mask=inside)",
        "stored, mask=inside & (row > 0))", lambda n: n.RESIDUAL),
    edit("rms_norm", "rms_norm", ADDED, "added to the sum", "stored = value.to",
        "value += tl.load(total + row * N + at, mask=inside, other=0.0).to(tl.float32)\n"
        "        stored = value.to", lambda n: n.RESIDUAL),
    edit("rms_norm", "rms_norm", ORDER, "every row is also the last", "tl.store(out + row * N",
        "tl.store(out + (rows - 1) * N + at, (value * scale * w).to(out.dtype.element_ty), mask=inside)\n"
        "    tl.store(out + row * N"),
    edit("embedding", "embedding", MASK, "read beyond N", "tl.load(table + token * N + n, mask=n < N)",
        "tl.load(table + token * N + n)", beyond("N", "BLOCK")),
    edit("embedding", "embedding", MASK, "stored beyond N", "mask=n < N), mask=n < N)", "mask=n < N))",
        beyond("N", "BLOCK")),
    edit("embedding", "embedding", STALE, "last column not stored", "mask=n < N), mask=n < N)",
        "mask=n < N), mask=n < N - 1)"),
    edit("embedding", "embedding", PLACE, "token of the row before", "tl.load(tokens + row)",
        "tl.load(tokens + tl.maximum(row - 1, 0))"),
    edit("embedding", "embedding", TILE, "blocks apart", "tl.program_id(1) * BLOCK", "tl.program_id(1) * (BLOCK + 1)",
        several("N", "BLOCK")),
    edit("embedding", "embedding", ORDER, "every row is also the last", "    tl.store(out + row * N + n,",
        "    tl.store(out + (rows - 1) * N + n, tl.load(table + token * N + n, mask=n < N), mask=n < N)\n"
        "    tl.store(out + row * N + n,"),
    edit("latent_cache", "latent_cache", STALE, "last of the latent not stored", "inside = at < LATENT\n",
        "inside = at < LATENT - 1\n"),
    edit("latent_cache", "latent_cache", STALE, "last of the key not stored", "at < LATENT + ROPE",
        "at < LATENT + ROPE - 1"),
    edit("latent_cache", "latent_cache", SCALE, "mean of the block", "/ LATENT + EPS", "/ LATENT_BLOCK + EPS",
        lambda n: n.LATENT_BLOCK != n.LATENT),
    edit("latent_cache", "latent_cache", SCALE, "no epsilon", "/ LATENT + EPS", "/ LATENT"),
    edit("latent_cache", "latent_cache", PLACE, "row for slot", "cache += slot *", "cache += row *"),
    edit("latent_cache", "latent_cache", PLACE, "kv taken for dense", "row * KV_STRIDE", "row * (LATENT + ROPE)",
        lambda n: n.KV_STRIDE != n.LATENT + n.ROPE),
    edit("latent_cache", "latent_cache", TILE, "slot 0 left out", "if slot >= 0:", "if slot > 0:"),
    edit("latent_cache", "latent_cache", MASK, "padding stored", "if slot >= 0:", "if slot >= -1:"),
    edit("latent_cache rope_query", "_rotated", TILE, "position 0 not rotated", "(position >= 0)", "(position > 0)"),
    edit("latent_cache rope_query", "_rotated", SCALE, "rotated the other way", "a * cos - b * sin",
        "a * cos + b * sin"),
    edit("rope_query", "_rotated", MASK, "padding rotated", " & (position >= 0)", ""),
    edit("latent_cache", "latent_cache", MASK, "stored beyond the key", "key.to(cache.dtype.element_ty), mask=inside)",
        "key.to(cache.dtype.element_ty))", lambda n: n.ROPE_BLOCK != n.ROPE),
    edit("rope_query", "rope_query", MASK, "heads beyond the last", "(head < HEADS) & (at < ROPE)",
        "(head >= 0) & (at < ROPE)", beyond("HEADS", "BLOCK_H")),
    edit("rope_query", "rope_query", MASK, "beyond the rotated part", "(head < HEADS) & (at < ROPE)",
        "(head < HEADS) & (at >= 0)", lambda n: n.ROPE_BLOCK != n.ROPE),
    edit("rope_query", "rope_query", STALE, "last head not stored", "(head < HEADS)", "(head < HEADS - 1)"),
    edit("rope_query", "rope_query", PLACE, "offset forgotten", "+ OUT_OFFSET", ""),
    edit("rope_query", "rope_query", PLACE, "heads as in q", "head * OUT_HEAD", "head * (NOPE + ROPE)",
        lambda n: n.OUT_HEAD != n.NOPE + n.ROPE),
    edit("rope_query", "rope_query", PLACE, "rows of q taken for dense", "row * Q_ROW", "row * (HEADS * (NOPE + ROPE))",
        lambda n: n.Q_ROW != n.HEADS * (n.NOPE + n.ROPE)),
    edit("rope_query", "rope_query", PLACE, "position of the row before", "tl.load(positions + row)",
        "tl.load(positions + tl.maximum(row - 1, 0))"),
    edit("rope_query", "rope_query", SCALE, "a head too large", "    tl.debug_barrier()",
        "    value = tl.where(head == HEADS - 1, value * 1.01, value)\n    tl.debug_barrier()"),
    edit("rope_query", "rope_query", TILE, "head blocks apart", "tl.program_id(1) * BLOCK_H",
        "tl.program_id(1) * (BLOCK_H + 1)", several("HEADS", "BLOCK_H")),
]
# fmt: on
