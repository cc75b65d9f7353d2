"""Linear layers, and the sums of their parts."""

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
    TILE,
    Edit,
    beyond,
    edit,
    several,
)

_PRODUCTS = "linear linear_fp32 linear_swiglu head_linear"
_BOTH = "mask=inside[:, None] & (k < stop)[None, :], "
_LINEAR = "linear linear_fp32"
_SUM = "split_k_sum split_k_sum_fp32"


def _unfull(n: SimpleNamespace) -> bool:
    part = getattr(n, "PART", n.K)
    return n.K % n.BLOCK_K != 0 or part % n.BLOCK_K != 0


def _split(n: SimpleNamespace) -> bool:
    return n.SPLIT_K > 1


# fmt: off
def _products(kernels: str, source: str) -> list[Edit]:
    return [
        edit(kernels, source, MASK, "rows of w beyond N", "N % BLOCK_N != 0", "False", beyond("N", "BLOCK_N")),
        edit(kernels, source, MASK, "K taken for full", "K % BLOCK_K != 0", "False and K != 0",
            lambda n: n.K % n.BLOCK_K != 0 and getattr(n, "PART", n.BLOCK_K) % n.BLOCK_K == 0),
        edit(kernels, source, MASK, "rows stored beyond the last", "(row < rows)[:, None] & (n < N)[None, :]",
            "(n < N)[None, :]", lambda n: n.BLOCK_M > 1),
        edit(kernels, source, MASK, "columns stored beyond the last", "(row < rows)[:, None] & (n < N)[None, :]",
            "(row < rows)[:, None]", beyond("N", "BLOCK_N")),
        edit(kernels, source, STALE, "last column not stored", "(n < N)[None, :]", "(n < N - 1)[None, :]"),
        edit(kernels, source, STALE, "last row of several not stored", "(row < rows)[:, None]",
            "(row < tl.maximum(rows - 1, 1))[:, None]"),
        edit(kernels, source, MASK, "rows of x unmasked", "row < rows, k,", "row < rows + 1, k,",
            lambda n: n.BLOCK_M > 1 and not getattr(n, "INDEXED", False)),
    ]


EDITS = [
    edit(_PRODUCTS, "load_tile", MASK, "K unmasked", _BOTH, "mask=inside[:, None], ", _unfull),
    edit(_PRODUCTS, "load_tile", TAIL, "last of K left out", "(k < stop)", "(k < stop - 1)", _unfull),
    edit(_PRODUCTS, "load_tile", TILE, "one of K too many", "(k < stop)", "(k <= stop)", _unfull),
    edit(_PRODUCTS, "load_tile", MASK, "lines unmasked", _BOTH, "mask=(k < stop)[None, :], ",
        lambda n: _unfull(n) and (n.N % n.BLOCK_N or (n.BLOCK_M > 1 and not getattr(n, "INDEXED", False)))),
    edit(_PRODUCTS, "tile_of", TILE, "group of fixed height", "tl.minimum(tl.cdiv(rows, BLOCK_M) - first, GROUP_M)",
        "GROUP_M", lambda n: n.GROUP_M > 1 and n.N > n.BLOCK_N),
    edit(_PRODUCTS, "tile_of", TILE, "columns rounded down", "(N + BLOCK_N - 1) // BLOCK_N", "N // BLOCK_N",
        lambda n: n.N > n.BLOCK_N and n.N % n.BLOCK_N),
    edit(_PRODUCTS, "add_product", STATE, "one row: only the last step", "total += w.to(tl.float32)",
        "total = w.to(tl.float32)",
        lambda n: n.BLOCK_M == 1 and n.K > n.BLOCK_K and getattr(n, "PART", n.K) > n.BLOCK_K),
    edit(_PRODUCTS, "add_product", STATE, "swapped: only the last step", "tl.dot(w, tl.trans(x), total,",
        "tl.dot(w, tl.trans(x),", lambda n: n.SWAP and n.K > n.BLOCK_K and getattr(n, "PART", n.K) > n.BLOCK_K),
    edit(_PRODUCTS, "add_product", STATE, "plain: only the last step", "tl.dot(x, tl.trans(w), total,",
        "tl.dot(x, tl.trans(w),",
        lambda n: n.BLOCK_M > 1 and not n.SWAP and n.K > n.BLOCK_K and getattr(n, "PART", n.K) > n.BLOCK_K),
    edit(_PRODUCTS, "finish", TAIL, "one row: half of the sums", "tl.sum(total, 1)", "tl.max(total, 1)",
        lambda n: n.BLOCK_M == 1),
    *_products("linear linear_fp32", "linear"),
    *_products("linear_swiglu", "linear_swiglu"),
    *_products("head_linear", "head_linear"),
    edit(_LINEAR, "linear", MASK, "parts taken for full", " or PART % BLOCK_K != 0", "",
        lambda n: n.K % n.BLOCK_K == 0 and n.PART % n.BLOCK_K != 0),
    edit(_LINEAR, "linear", SPLIT, "parts overlap by one", "start = part * PART",
        "start = tl.maximum(part * PART - 1, 0)", _split),
    edit(_LINEAR, "linear", SPLIT, "part that is not full left out", "tl.minimum(start + PART, K)",
        "tl.minimum(start + PART, K // PART * PART)", lambda n: n.K % n.PART != 0),
    edit(_LINEAR, "linear", SPLIT, "all parts in one place", "part.to(tl.int64) * rows * N", "part.to(tl.int64) * 0",
        _split),
    edit(_LINEAR, "linear", SPLIT, "last part not stored",
        "tl.store(partial_lines[:, None] + n[None, :], total, mask=inside)",
        "tl.store(partial_lines[:, None] + n[None, :], total, mask=inside & (part < SPLIT_K - 1))", _split),
    edit(_LINEAR, "linear", ADDED, "added to out", "total.to(out.dtype.element_ty), mask=inside)",
        "(total + tl.load(out_lines[:, None] + n[None, :], mask=inside, "
        "other=0.0).to(tl.float32)).to(out.dtype.element_ty), mask=inside)", lambda n: n.SPLIT_K == 1),
    edit(_LINEAR, "linear", PLACE, "index of the row before", "tl.load(index + row,",
        "tl.load(index + tl.maximum(row - 1, 0),", lambda n: n.INDEXED),
    edit(_LINEAR, "linear", PLACE, "x taken for dense", "lines_of(x, tile_m, X_STRIDE, BLOCK_M)",
        "lines_of(x, tile_m, K, BLOCK_M)", lambda n: not n.INDEXED and n.X_STRIDE != n.K),
    edit(_LINEAR, "linear", PLACE, "out taken for dense", "lines_of(out, tile_m, OUT_STRIDE, BLOCK_M)",
        "lines_of(out, tile_m, N, BLOCK_M)", lambda n: n.SPLIT_K == 1 and n.OUT_STRIDE != n.N),
    edit("linear_swiglu", "linear_swiglu", PLACE, "up is gate", "gate_lines + N * K", "gate_lines + 0 * K"),
    edit("linear_swiglu", "linear_swiglu", PLACE, "up is a row off", "gate_lines + N * K", "gate_lines + (N - 1) * K"),
    edit("linear_swiglu", "linear_swiglu", SCALE, "no gate", "gated * tl.sigmoid(gated) * finish", "gated * finish"),
    edit("linear_swiglu", "linear_swiglu", PLACE, "x taken for dense", "lines_of(x, tile_m, X_STRIDE, BLOCK_M)",
        "lines_of(x, tile_m, K, BLOCK_M)", lambda n: n.X_STRIDE != n.K),
    edit("head_linear", "head_linear", PLACE, "w of the head before", "w + head * (N * K)",
        "w + tl.maximum(head - 1, 0) * (N * K)"),
    edit("head_linear", "head_linear", PLACE, "heads of x taken for dense", "x + head * X_HEAD", "x + head * K"),
    edit("head_linear", "head_linear", PLACE, "heads of out taken for dense", "out + head * OUT_HEAD",
        "out + head * N"),
    edit("head_linear", "head_linear", SCALE, "a head too large", "total = finish(total, BLOCK_M, SWAP)",
        "total = finish(total, BLOCK_M, SWAP) * tl.where(head == HEADS - 1, 1.01, 1.0)"),
    edit(_SUM, "split_k_sum", SPLIT, "last part left out", "tl.static_range(SPLIT_K)", "tl.static_range(SPLIT_K - 1)"),
    edit(_SUM, "split_k_sum", SPLIT, "first part twice", "(row + part * rows)", "(row + max(part - 1, 0) * rows)"),
    edit(_SUM, "split_k_sum", PLACE, "parts a row too close", "part * rows)", "part * tl.maximum(rows - 1, 1))"),
    edit(_SUM, "split_k_sum", PLACE, "out taken for dense", "row * OUT_STRIDE", "row * N",
        lambda n: n.OUT_STRIDE != n.N),
    edit(_SUM, "split_k_sum", MASK, "read beyond N", "* N + n, mask=n < N, other=0.0)", "* N + n)",
        beyond("N", "BLOCK")),
    edit(_SUM, "split_k_sum", MASK, "stored beyond N", "total.to(out.dtype.element_ty), mask=n < N)",
        "total.to(out.dtype.element_ty))", beyond("N", "BLOCK")),
    edit(_SUM, "split_k_sum", STALE, "last column not stored", "total.to(out.dtype.element_ty), mask=n < N)",
        "total.to(out.dtype.element_ty), mask=n < N - 1)"),
    edit(_SUM, "split_k_sum", TILE, "blocks apart", "tl.program_id(1) * BLOCK ", "tl.program_id(1) * (BLOCK + 1) ",
        several("N", "BLOCK")),
    edit(_SUM, "split_k_sum", ADDED, "added to out", "total = tl.zeros((BLOCK,), tl.float32)",
        "total = tl.load(out + row * OUT_STRIDE + n, mask=n < N, other=0.0).to(tl.float32)"),
    edit(_SUM, "split_k_sum", ORDER, "every row is also the last", "tl.store(out + row * OUT_STRIDE",
        "tl.store(out + (rows - 1) * OUT_STRIDE + n, total.to(out.dtype.element_ty), mask=n < N)\n"
        "    tl.store(out + row * OUT_STRIDE"),
]
# fmt: on
