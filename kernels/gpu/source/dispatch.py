"""Sorts (token, expert) entries by expert."""

import triton
import triton.language as tl


@triton.jit
def dispatch(ids, offsets, order, rows, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    expert = tl.program_id(0)
    entries = rows * TOP_K
    lane = tl.arange(0, BLOCK)
    below = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, entries, BLOCK):
        entry = start + lane
        below += (tl.load(ids + entry, mask=entry < entries, other=EXPERTS) < expert).to(tl.int32)
    place = tl.sum(below, 0)
    tl.store(offsets + expert, place)
    if expert == EXPERTS - 1:
        tl.store(offsets + EXPERTS, entries)
    for start in range(0, entries, BLOCK):
        entry = start + lane
        mine = (tl.load(ids + entry, mask=entry < entries, other=EXPERTS) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine, 0) - 1, entry, mask=mine > 0)
        place += tl.sum(mine, 0)
