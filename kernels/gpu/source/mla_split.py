"""Split of one decode step's attention over parts, and the merge of what they computed."""

import triton
import triton.language as tl


@triton.jit
def _units(positions, row, rows, PAGE: tl.constexpr, OVERHEAD: tl.constexpr):
    """Work of each row: its blocks of PAGE positions, and OVERHEAD if there are any."""
    blocks = (tl.load(positions + row, mask=row < rows, other=-1) + PAGE) // PAGE
    return tl.where(blocks > 0, blocks + OVERHEAD, 0)


@triton.jit
def mla_schedule(
    positions, parts, rows, PAGE: tl.constexpr, PARTS: tl.constexpr, OVERHEAD: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    total = 0
    for start in range(0, rows, BLOCK_R):
        total += tl.sum(_units(positions, start + tl.arange(0, BLOCK_R), rows, PAGE, OVERHEAD), 0)
    each = tl.maximum(tl.cdiv(total, PARTS), 1)
    part = tl.arange(0, BLOCK_P)
    unit = part * each
    row = tl.zeros([BLOCK_P], tl.int32)
    begin = tl.zeros([BLOCK_P], tl.int32)
    before = 0
    for start in range(0, rows, BLOCK_R):
        at = start + tl.arange(0, BLOCK_R)
        units = _units(positions, at, rows, PAGE, OVERHEAD)
        upto = (before + tl.cumsum(units, 0))[None, :]
        passed = (upto <= unit[:, None]) & (at < rows)[None, :]
        row += tl.sum(passed.to(tl.int32), 1)
        begin = tl.maximum(begin, tl.max(tl.where(passed, upto, 0), 1))
        before += tl.sum(units, 0)
    row = tl.where(part == 0, 0, row)
    into = tl.where(row < rows, unit - begin - OVERHEAD, 0)
    cut = (into > 0) & (part <= PARTS)
    opens = cut & (into <= each)
    cuts, opened = cut.to(tl.int32), opens.to(tl.int32)
    slot = tl.cumsum(cuts + opened, 0) - cuts
    split = tl.cumsum(opened, 0) - 1
    entry = parts + part * 5
    tl.store(entry, row, mask=part <= PARTS)
    tl.store(entry + 1, tl.maximum(into, 0), mask=part <= PARTS)
    tl.store(entry + 2, slot, mask=part <= PARTS)
    entry = parts + split * 5
    tl.store(entry + 3, row, mask=opens)
    tl.store(entry + 4, slot - 1, mask=opens)
    entry = parts + part * 5
    free = (part >= tl.sum(opened, 0)) & (part <= PARTS)
    tl.store(entry + 3, rows + tl.zeros([BLOCK_P], tl.int32), mask=free)
    tl.store(entry + 4, tl.sum(cuts + opened, 0) + tl.zeros([BLOCK_P], tl.int32), mask=free)


@triton.jit
def mla_combine(
    partial, lse, parts, out, rows, HEADS: tl.constexpr, LATENT: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    split = parts + tl.program_id(0) * 5 + 3
    head = tl.program_id(1)
    column = tl.program_id(2) * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = column < LATENT
    row = tl.load(split)
    if row < rows:
        end = tl.load(split + 6)
        acc = tl.zeros([BLOCK_L], tl.float32)
        total = 0.0
        top = float("-inf")
        for start in range(tl.load(split + 1), end, BLOCK_S):
            slot = start + tl.arange(0, BLOCK_S)
            at = slot.to(tl.int64) * HEADS + head
            weight = tl.load(lse + at, mask=slot < end, other=float("-inf"))
            mask = (slot < end)[:, None] & inside[None, :]
            value = tl.load(partial + (at * LATENT)[:, None] + column[None, :], mask=mask, other=0.0)
            higher = tl.maximum(top, tl.max(weight, 0))
            weight = tl.exp2(weight - higher)
            shrink = tl.exp2(top - higher)
            acc = acc * shrink + tl.sum(value * weight[:, None], 0)
            total = total * shrink + tl.sum(weight, 0)
            top = higher
        at = row.to(tl.int64) * HEADS + head
        tl.store(out + at * LATENT + column, (acc / total).to(out.dtype.element_ty), mask=inside)
