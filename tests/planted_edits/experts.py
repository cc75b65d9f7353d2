"""The gate, and the routed experts."""

from __future__ import annotations

from types import SimpleNamespace

from tests.planted_edits.core import (
    ADDED,
    MASK,
    ORDER,
    PLACE,
    SCALE,
    SPLIT,
    STALE,
    STATE,
    TAIL,
    TIE,
    TILE,
    Edit,
    beyond,
    edit,
    several,
)

_MOE = "moe_up moe_down"


def _many(n: SimpleNamespace) -> bool:
    return n.BLOCK_M > 1


def _grouped(n: SimpleNamespace) -> bool:
    return n.GROUPS > 1


# fmt: off
def _grouped_product(kernel: str, expert: str) -> list[Edit]:
    """``expert``: elements of w of an expert."""
    return [
        edit(kernel, kernel, PLACE, "weights of the next expert", f"expert.to(tl.int64) * ({expert})",
            f"tl.minimum(expert + 1, EXPERTS - 1).to(tl.int64) * ({expert})"),
        edit(kernel, kernel, PLACE, "experts too close in w", f"expert.to(tl.int64) * ({expert})",
            f"expert.to(tl.int64) * ({expert} - K)"),
        edit(kernel, kernel, MASK, "entries read beyond the end", "line = tl.minimum(m, end - 1 - first)", "line = m",
            _many),
        edit(kernel, kernel, MASK, "rows of w beyond N", "tl.minimum(n, N - 1)", "n", beyond("N", "BLOCK_N")),
        edit(kernel, kernel, MASK, "columns stored beyond the last", " & (n < N)[None, :])", ")",
            beyond("N", "BLOCK_N")),
        edit(kernel, kernel, STALE, "last column not stored", "(n < N)[None, :]", "(n < N - 1)[None, :]"),
        edit(kernel, kernel, STALE, "last entry of an expert not stored", "(first + m < end)", "(first + m < end - 1)"),
        edit(kernel, kernel, MASK, "K taken for full", "K % BLOCK_K != 0", "False", beyond("K", "BLOCK_K")),
        edit(kernel, kernel, TAIL, "end of K left out", "_unknown(K, rows)", "_unknown(K // BLOCK_K * BLOCK_K, rows)",
            beyond("K", "BLOCK_K")),
        edit(kernel, kernel, TILE, "surplus programs go on", "expert >= EXPERTS", "expert > EXPERTS",
            lambda n: n.BLOCK_M > 1 and n.EXPERTS_BLOCK == n.EXPERTS),
        edit(kernel, kernel, PLACE, "row tiles for column tiles", "begin + tile % tiles * BLOCK_M",
            "begin + tile // tiles * BLOCK_M", several("N", "BLOCK_N")),
        edit(kernel, kernel, TILE, "column tiles apart", "tile // tiles * BLOCK_N", "tile // tiles * (BLOCK_N + 1)",
            several("N", "BLOCK_N")),
    ]


EDITS = [
    edit(_MOE, "_find", TILE, "a tile too few", "tl.cdiv(count, BLOCK_M)", "tl.cdiv(count - 1, BLOCK_M)"),
    edit(_MOE, "_find", TILE, "tiles rounded down", "tl.cdiv(count, BLOCK_M)",
        "tl.maximum(count // BLOCK_M, (count > 0).to(tl.int32))", _many),
    edit(_MOE, "_find", PLACE, "an expert too far", "<= program).to(tl.int32), 0)", "< program).to(tl.int32), 0)"),
    *_grouped_product("moe_up", "2 * N * K"),
    *_grouped_product("moe_down", "N * K"),
    edit("moe_up", "moe_up", MASK, "rows stored into the next expert's", "(first + m < end)[:, None] & ",
        "(m >= 0)[:, None] & ", _many),
    edit("moe_up", "moe_up", ORDER, "one row into the next expert's", "(first + m < end)", "(first + m <= end)", _many),
    edit("moe_up", "moe_up", PLACE, "entry for its token", ") // TOP_K", ") // max(TOP_K - 1, 1)",
        lambda n: n.TOP_K > 1),
    edit("moe_up", "moe_up", PLACE, "up is a row off", "gate_lines + N * K", "gate_lines + (N - 1) * K"),
    edit("moe_down", "moe_down", PLACE, "weight by place", "tl.load(weights + entry)",
        "tl.load(weights + first + line)"),
    edit("moe_down", "moe_down", PLACE, "out by place", "entry.to(tl.int64)[:, None] * N",
        "(first + line).to(tl.int64)[:, None] * N"),
    edit("moe_down", "moe_down", PLACE, "x by entry", "x + first.to(tl.int64) * K + line * K",
        "x + entry.to(tl.int64) * K"),
    edit("moe_combine", "moe_combine", SPLIT, "last expert left out", "tl.static_range(TOP_K)",
        "tl.static_range(TOP_K - 1)"),
    edit("moe_combine", "moe_combine", STALE, "shared experts left out", "if SHARED:", "if SHARED and BLOCK_N < 0:",
        lambda n: n.SHARED),
    edit("moe_combine", "moe_combine", MASK, "stored beyond N", "element_ty), mask=inside)", "element_ty))",
        beyond("N", "BLOCK_N")),
    edit("moe_combine", "moe_combine", MASK, "read beyond N", "+ column, mask=inside, other=0.0)", "+ column)",
        beyond("N", "BLOCK_N")),
    edit("moe_combine", "moe_combine", STALE, "last column not stored", "inside = column < N",
        "inside = column < N - 1"),
    edit("moe_combine", "moe_combine", TILE, "blocks apart", "tl.program_id(1) * BLOCK_N",
        "tl.program_id(1) * (BLOCK_N + 1)", several("N", "BLOCK_N")),
    edit("moe_combine", "moe_combine", ADDED, "added to out", "total = tl.zeros((BLOCK_N,), tl.float32)",
        "total = tl.load(out + row * N + column, mask=inside, other=0.0).to(tl.float32)"),
    edit("moe_combine", "moe_combine", ORDER, "every row is also the last", "tl.store(out + row * N",
        "tl.store(out + (rows - 1) * N + column, total.to(out.dtype.element_ty), mask=inside)\n"
        "    tl.store(out + row * N"),
    edit("moe_combine", "moe_combine", PLACE, "shared of the first row", "shared + row * N", "shared + row * 0",
        lambda n: n.SHARED),
    edit("dispatch", "dispatch", PLACE, "own entries counted below", "< expert)", "<= expert)"),
    edit("dispatch", "dispatch", MASK, "missing entries are the first expert's", "other=EXPERTS) <", "other=0) <"),
    edit("dispatch", "dispatch", STALE, "last offset not stored", "if expert == EXPERTS - 1:", "if expert == EXPERTS:"),
    edit("dispatch", "dispatch", STATE, "place not moved on", "place += tl.sum(mine, 0)", "place += 0"),
    edit("dispatch", "dispatch", TILE, "places off by one", "tl.cumsum(mine, 0) - 1", "tl.cumsum(mine, 0)"),
    edit("dispatch", "dispatch", TIE, "backwards in a block", "place + tl.cumsum(mine, 0) - 1",
        "place + tl.sum(mine, 0) - tl.cumsum(mine, 0)"),
    edit("dispatch", "dispatch", TAIL, "block that is not full left out", "for start in range(0, entries, BLOCK):",
        "for start in range(0, entries // BLOCK * BLOCK, BLOCK):"),
    edit("dispatch", "dispatch", PLACE, "token for entry", "entry, mask=mine > 0)", "entry // TOP_K, mask=mine > 0)",
        lambda n: n.TOP_K > 1),
    edit("dispatch", "dispatch", STALE, "last entry not stored", "entry, mask=mine > 0)",
        "entry, mask=(mine > 0) & (entry < entries - 1))"),
    edit("gate", "gate", MASK, "rows stored beyond the last", "inside[:, None] & (slot < TOP_K)", "(slot < TOP_K)"),
    edit("gate", "gate", MASK, "slots stored beyond the last", "inside[:, None] & (slot < TOP_K)", "inside[:, None]",
        lambda n: n.TOP_BLOCK != n.TOP_K),
    edit("gate", "gate", MASK, "K unmasked", " & (start + k[:, None] < K)", "", beyond("K", "BLOCK_K")),
    edit("gate", "gate", TAIL, "end of K left out", "range(0, K, BLOCK_K)", "range(0, K // BLOCK_K * BLOCK_K, BLOCK_K)",
        beyond("K", "BLOCK_K")),
    edit("gate", "gate", TAIL, "last of K left out", "(start + k[None, :] < K)", "(start + k[None, :] < K - 1)"),
    edit("gate", "gate", STATE, "only the last step", "tl.dot(a, b, logits,", "tl.dot(a, b,", several("K", "BLOCK_K")),
    Edit(TIE, "highest of equal experts", ("gate",), (
        ("gate", "(BLOCK - 1 - column)[None, :]", "column[None, :]"),
        ("gate", "at = BLOCK - 1 - (key & (BLOCK - 1))", "at = (key & (BLOCK - 1))"),
    )),
    edit("gate", "gate", TIE, "last of equal groups", "group[None, None, :] < group[None, :, None]",
        "group[None, None, :] > group[None, :, None]", _grouped),
    edit("gate", "gate", TILE, "a group too many", "< TOPK_GROUPS", "<= TOPK_GROUPS", _grouped),
    edit("gate", "gate", MASK, "all groups", "> 0, bits, 0)", "> 0, bits, bits)", _grouped),
    edit("gate", "gate", SCALE, "not scaled", "values * SCALE", "values", lambda n: not n.NORMALIZE),
    edit("gate", "gate", SCALE, "not normalised", "if NORMALIZE else values * SCALE",
        "if NORMALIZE and K < 0 else values * SCALE", lambda n: n.NORMALIZE),
    edit("gate", "gate", STALE, "last choice left out", "tl.static_range(TOP_K)", "tl.static_range(TOP_K - 1)"),
    edit("gate", "gate", STATE, "an expert chosen twice", "keys = tl.where(column[None, :] == at[:, None], -1, keys)",
        "keys = keys"),
    edit("gate", "gate", MASK, "NaN is nothing", "bitcast=True), NAN)", "bitcast=True), 0)"),
    edit("gate", "gate", PLACE, "experts as columns", "at // MEMBERS_BLOCK * MEMBERS + at % MEMBERS_BLOCK", "at",
        lambda n: n.MEMBERS_BLOCK * n.GROUPS != n.EXPERTS and n.GROUPS > 1),
]
# fmt: on
