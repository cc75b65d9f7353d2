"""Attention in its expanded and its absorbed form."""

from __future__ import annotations

from types import SimpleNamespace

from tests.planted_edits.core import (
    MASK,
    ORDER,
    PAGE,
    PLACE,
    SCALE,
    SPLIT,
    STALE,
    STATE,
    TAIL,
    TILE,
    beyond,
    edit,
    several,
)

_PAGED = "mla_decode mla_extend"


def _pieces(n: SimpleNamespace) -> bool:
    return n.PARTS > n.BLOCK_S


def _inside(n: SimpleNamespace) -> bool:
    return n.PAGE % n.BLOCK_N == 0


def _across(n: SimpleNamespace) -> bool:
    return n.PAGE % n.BLOCK_N != 0


def _tiled(n: SimpleNamespace) -> bool:
    return n.QUERY_TILE > 1


# fmt: off
EDITS = [
    edit("mla_prefill", "mla_prefill", MASK, "the future seen", "first + 1) // BLOCK_N * BLOCK_N",
        "first + BLOCK_N) // BLOCK_N * BLOCK_N"),
    edit("mla_prefill", "_step", TILE, "a key too many", "key[None, :] <= last[:, None]",
        "key[None, :] <= last[:, None] + 1"),
    edit("mla_prefill", "_step", TILE, "a row does not see itself", "key[None, :] <= last[:, None]",
        "key[None, :] < last[:, None]"),
    edit("mla_prefill", "mla_prefill", TAIL, "one block at the diagonal",
        "tl.minimum(length, length - count + first + BLOCK_M), BLOCK_N)", "shared + BLOCK_N, BLOCK_N)"),
    edit("mla_prefill", "mla_prefill", MASK, "rows stored beyond the sequence", "mask=there & (v[None, :] < V))",
        "mask=(v[None, :] < V))"),
    edit("mla_prefill", "mla_prefill", MASK, "columns stored beyond the head", "mask=there & (v[None, :] < V))",
        "mask=there)", lambda n: n.V_BLOCK != n.V),
    edit("mla_prefill", "mla_prefill", STALE, "last column not stored", "(v[None, :] < V))", "(v[None, :] < V - 1))"),
    edit("mla_prefill", "mla_prefill", STALE, "tile of one row not stored", "if first < count:",
        "if first + 1 < count:"),
    edit("mla_prefill", "mla_prefill", SCALE, "a head too small", "(total / weight[:, None])",
        "(total / weight[:, None] / tl.where(head == HEADS - 1, 1.02, 1.0))"),
    edit("mla_prefill", "_step", STATE, "sums do not fade", "total * fade[:, None]", "total"),
    edit("mla_prefill", "_step", STATE, "weights do not fade", "weight * fade", "weight"),
    edit("mla_prefill", "_step", SCALE, "no rotated part", "scores = tl.dot(q_rope, k_rope, scores,",
        "unused = tl.dot(q_rope, k_rope, scores,"),
    edit("mla_prefill", "mla_prefill", PLACE, "slots of the first sequence", "slots += context", "slots += 0"),
    edit("mla_prefill", "mla_prefill", PLACE, "keys of the first sequence", "kv += context.to(tl.int64) *",
        "kv += context.to(tl.int64) * 0 *"),
    edit("mla_prefill", "mla_prefill", PLACE, "rows of q taken for dense", "* Q_ROW +", "* (HEADS * (NOPE + ROPE)) +",
        lambda n: n.Q_ROW != n.HEADS * (n.NOPE + n.ROPE)),
    edit("mla_prefill", "_step", MASK, "slots beyond the sequence", "_tile(slots + key, there, there, DIAGONAL, False)",
        "_tile(slots + key, there, there, False, False)"),
    edit("mla_prefill", "mla_prefill", TILE, "a tile too few for a sequence", "// BLOCK_M + b\n",
        "// BLOCK_M + tl.maximum(b - 1, 0)\n"),
    edit("mla_schedule", "_units", PAGE, "page boundary", "+ PAGE) // PAGE", "+ PAGE - 1) // PAGE"),
    edit("mla_schedule", "_units", SPLIT, "no cost of a row", "blocks + OVERHEAD", "blocks"),
    edit("mla_schedule", "_units", SPLIT, "padding costs", "tl.where(blocks > 0, blocks + OVERHEAD, 0)",
        "blocks + OVERHEAD"),
    edit("mla_schedule", "mla_schedule", SPLIT, "parts rounded down", "tl.cdiv(total, PARTS)", "total // PARTS"),
    edit("mla_schedule", "mla_schedule", TILE, "boundary in the row before", "(upto <= unit[:, None])",
        "(upto < unit[:, None])"),
    edit("mla_schedule", "mla_schedule", MASK, "rows beyond the last", " & (at < rows)[None, :]", "",
        lambda n: n.BLOCK_R > 1),
    edit("mla_schedule", "mla_schedule", PLACE, "padding in front left out", "row = tl.where(part == 0, 0, row)",
        "row = row"),
    edit("mla_schedule", "mla_schedule", STATE, "blocks of rows forget the one before", "before += tl.sum(units, 0)",
        "before += 0"),
    edit("mla_schedule", "mla_schedule", STALE, "last entry not stored", "tl.zeros([BLOCK_P], tl.int32), mask=free)",
        "tl.zeros([BLOCK_P], tl.int32), mask=free & (part < PARTS))"),
    edit("mla_schedule", "mla_schedule", SPLIT, "row opened late", "(into <= each)", "(into < each)"),
    edit("mla_schedule", "mla_schedule", PLACE, "slots not counted from the opened",
        "tl.cumsum(cuts + opened, 0) - cuts", "tl.cumsum(cuts + opened, 0)"),
    edit("mla_combine", "mla_combine", SPLIT, "last piece left out", "slot < end", "slot < end - 1"),
    edit("mla_combine", "mla_combine", SPLIT, "a piece too many", "slot < end", "slot <= end"),
    edit("mla_combine", "mla_combine", STATE, "sums do not shrink", "acc * shrink", "acc", _pieces),
    edit("mla_combine", "mla_combine", STATE, "weights do not shrink", "total * shrink", "total", _pieces),
    edit("mla_combine", "mla_combine", SCALE, "other base", "tl.exp2(weight - higher)", "tl.exp(weight - higher)"),
    edit("mla_combine", "mla_combine", PLACE, "weights of the first head", "tl.load(lse + at,",
        "tl.load(lse + slot.to(tl.int64) * HEADS,"),
    edit("mla_combine", "mla_combine", TILE, "rows that are not cut", "if row < rows:", "if row <= rows:"),
    edit("mla_combine", "mla_combine", MASK, "stored beyond the latent", "element_ty), mask=inside)", "element_ty))",
        beyond("LATENT", "BLOCK_L")),
    edit("mla_combine", "mla_combine", STALE, "last column not stored", "inside = column < LATENT",
        "inside = column < LATENT - 1"),
    edit("mla_combine", "mla_combine", TILE, "blocks apart", "tl.program_id(2) * BLOCK_L",
        "tl.program_id(2) * (BLOCK_L + 1)", several("LATENT", "BLOCK_L")),
    edit("mla_combine", "mla_combine", ORDER, "every head is also the last", "tl.store(out + at * LATENT",
        "tl.store(out + (row.to(tl.int64) * HEADS + HEADS - 1) * LATENT + column, (acc / "
        "total).to(out.dtype.element_ty), mask=inside)\n"
        "        tl.store(out + at * LATENT"),
    edit(_PAGED, "_attend", PAGE, "page of the tile before", "_pages(table, start + BLOCK_N, end,",
        "_pages(table, start, end,"),
    edit(_PAGED, "_attend", PAGE, "start of the page for the tile", "(page.to(tl.int64) * PAGE + start % PAGE)",
        "(page.to(tl.int64) * PAGE)", lambda n: n.PAGE % n.BLOCK_N == 0 and n.PAGE > n.BLOCK_N),
    edit(_PAGED, "_pages", PAGE, "one page for a tile of several", "table + token // PAGE, mask=token < end",
        "table + start // PAGE + token * 0, mask=token < end", _across),
    edit(_PAGED, "_attend", TILE, "a key beyond the end", "k_inside = token < end", "k_inside = token <= end"),
    edit(_PAGED, "_attend", MASK, "keys beyond the end count", "(token < end) & ", "",
        lambda n: n.PAGE % n.BLOCK_N != 0 and hasattr(n, "PARTS")),
    edit("mla_extend", "_attend", MASK, "the future seen", " & (token <= tl.expand_dims(reach, axis))", "",
        lambda n: n.QUERY_TILE > 1),
    edit(_PAGED, "_attend", TILE, "a row does not see itself", "token <= tl.expand_dims(reach, axis)",
        "token < tl.expand_dims(reach, axis)"),
    edit(_PAGED, "_attend", STATE, "sums do not shrink", "acc[c] * shrink", "acc[c]"),
    edit(_PAGED, "_attend", STATE, "weights do not shrink", "total * shrink", "total"),
    edit(_PAGED, "_attend", SCALE, "other base", "SCALE * 1.4426950408889634", "SCALE"),
    edit(_PAGED, "_attend", SCALE, "no rotated part", "s = _scores(q_rope, k_rope, s, SWAP)", "s = s + 0.0"),
    edit(_PAGED, "_attend", SCALE, "a head too large", "tl.expand_dims(1.0 / total, axis)",
        "tl.expand_dims(tl.where(tl.arange(0, BLOCK_M) == 1, 1.02, 1.0) / total, axis)",
        lambda n: n.BLOCK_H > 1 or hasattr(n, "QUERY_TILE")),
    edit(_PAGED, "_tile", MASK, "columns read beyond the row", "mask & (at < COUNT)[None, :]", "mask",
        lambda n: n.BLOCK_L != n.LATENT or n.BLOCK_R != n.ROPE),
    edit(_PAGED, "_store", MASK, "columns stored beyond the latent", "mask & (column < LATENT - c * CHUNK)[None, :]",
        "mask", lambda n: n.BLOCK_L != n.LATENT and not n.SWAP if hasattr(n, "SWAP") else n.BLOCK_L != n.LATENT),
    edit("mla_decode", "_store", MASK, "swapped: columns stored beyond the latent",
        "mask & (column < LATENT - c * CHUNK)[:, None]", "mask", lambda n: n.BLOCK_L != n.LATENT and n.SWAP),
    edit("mla_decode", "mla_decode", STALE, "weight of the first head not stored", "weight, mask=inside)",
        "weight, mask=inside & (head > 0))"),
    edit("mla_decode", "mla_decode", STALE, "padding not cleared", "elif position < 0:", "elif position < -1:"),
    edit("mla_decode", "mla_decode", SPLIT, "first piece in the slot of another",
        "tl.where(block > 0, tl.load(part + 2)", "tl.where(block >= 0, tl.load(part + 2)"),
    edit("mla_decode", "mla_decode", SPLIT, "a piece taken for the row", "(block == 0) & (end == position + 1)",
        "(block == 0)"),
    edit("mla_decode", "mla_decode", SPLIT, "every piece to the end",
        "tl.minimum(tl.load(part + 6) * PAGE, position + 1)", "position + 1"),
    edit("mla_decode", "mla_decode", SPLIT, "a piece a position short", "tl.load(part + 6) * PAGE,",
        "tl.load(part + 6) * PAGE - 1,"),
    edit("mla_decode", "mla_decode", PAGE, "pages of another sequence", "tl.load(sequence + row)",
        "tl.load(sequence + row * 0)"),
    edit("mla_decode", "mla_decode", MASK, "heads beyond the last", "head < HEADS - tile", "head <= HEADS - tile",
        beyond("HEADS", "BLOCK_H")),
    edit("mla_decode", "mla_decode", TILE, "last row of a part left out", "tl.minimum(last + 1, rows)",
        "tl.minimum(last, rows)"),
    edit("mla_extend", "mla_extend", TILE, "all rows see what the first sees", "position + query, cache",
        "position + query * 0, cache", _tiled),
    edit("mla_extend", "mla_extend", TAIL, "keys up to the first row's", "0, position + count,", "0, position + 1,",
        _tiled),
    edit("mla_extend", "mla_extend", MASK, "heads beyond the last", "inside = inside & (head < HEADS - tile)",
        "inside = inside", beyond("HEADS", "BLOCK_H")),
    edit("mla_extend", "mla_extend", PAGE, "pages of the first sequence", "sequence.to(tl.int64) * MAX_PAGES",
        "sequence.to(tl.int64) * 0"),
    edit("mla_extend", "mla_extend", STALE, "last padding row not cleared", "(query < rows - first)",
        "(query < rows - first - 1)"),
    edit("mla_extend", "mla_extend", TILE, "tiles rounded down", "tl.cdiv(counts, QUERY_TILE)",
        "(counts // QUERY_TILE)", _tiled),
    edit("mla_extend", "mla_extend", ORDER, "rows stored beyond the sequence", "inside = query < count",
        "inside = query <= count", _tiled),
    edit("mla_extend", "mla_extend", TILE, "tiles overlap", "passed, upto, 0), 0)) * QUERY_TILE",
        "passed, upto, 0), 0)) * (QUERY_TILE - 1)", _tiled),
]
# fmt: on
