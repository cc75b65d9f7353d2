"""The softmax gate: logits, group limit and top k of a tile of tokens."""

import triton
import triton.language as tl


@triton.jit
def gate(
    x, w, ids, weights, rows, EXPERTS: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, GROUPS: tl.constexpr,
    TOPK_GROUPS: tl.constexpr, SCALE: tl.constexpr, NORMALIZE: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUPS_BLOCK: tl.constexpr, MEMBERS_BLOCK: tl.constexpr, TOP_BLOCK: tl.constexpr,
):  # fmt: skip
    MEMBERS: tl.constexpr = EXPERTS // GROUPS
    BLOCK: tl.constexpr = GROUPS_BLOCK * MEMBERS_BLOCK
    NAN: tl.constexpr = 0x7FC00000
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = row < rows
    # every group starts at a multiple of MEMBERS_BLOCK; columns are in the order of the experts
    column = tl.arange(0, BLOCK)
    expert = column // MEMBERS_BLOCK * MEMBERS + column % MEMBERS_BLOCK
    real = (column % MEMBERS_BLOCK < MEMBERS) & (expert < EXPERTS)

    k = tl.arange(0, BLOCK_K)
    xs = x + row.to(tl.int64)[:, None] * K + k[None, :]
    ws = w + expert[None, :] * K + k[:, None]
    logits = tl.zeros((TOKENS, BLOCK), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(xs + start, mask=inside[:, None] & (start + k[None, :] < K), other=0.0)
        b = tl.load(ws + start, mask=real[None, :] & (start + k[:, None] < K), other=0.0)
        logits = tl.dot(a, b, logits, input_precision="ieee")
    logits = tl.where(real[None, :], logits, float("-inf"))
    power = tl.exp(logits - tl.max(logits, 1)[:, None])
    scores = power / tl.sum(power, 1)[:, None]

    # scores are not negative, so their bits rank as they do; NaN ranks above all, as in a sort
    bits = tl.where(scores == scores, scores.to(tl.int32, bitcast=True), NAN)
    if GROUPS > 1:
        masked = tl.where(real[None, :], bits, -1)
        best = tl.max(tl.reshape(masked, (TOKENS, GROUPS_BLOCK, MEMBERS_BLOCK)), 2)
        group = tl.arange(0, GROUPS_BLOCK)
        earlier = group[None, None, :] < group[None, :, None]
        ahead = (best[:, None, :] > best[:, :, None]) | ((best[:, None, :] == best[:, :, None]) & earlier)
        keep = tl.sum(ahead.to(tl.int32), 2) < TOPK_GROUPS
        keep = tl.broadcast_to(keep.to(tl.int32)[:, :, None], (TOKENS, GROUPS_BLOCK, MEMBERS_BLOCK))
        bits = tl.where(tl.reshape(keep, (TOKENS, BLOCK)) > 0, bits, 0)

    # one maximum finds the highest score and, where several are equal, the lowest column
    keys = (bits.to(tl.int64) << 32) | (BLOCK - 1 - column)[None, :]
    keys = tl.where(real[None, :], keys, -1)
    slot = tl.arange(0, TOP_BLOCK)[None, :]
    chosen = tl.zeros((TOKENS, TOP_BLOCK), tl.int32)
    values = tl.zeros((TOKENS, TOP_BLOCK), tl.float32)
    for j in tl.static_range(TOP_K):
        key = tl.max(keys, 1)
        at = BLOCK - 1 - (key & (BLOCK - 1)).to(tl.int32)
        value = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        chosen = tl.where(slot == j, (at // MEMBERS_BLOCK * MEMBERS + at % MEMBERS_BLOCK)[:, None], chosen)
        values = tl.where(slot == j, value[:, None], values)
        keys = tl.where(column[None, :] == at[:, None], -1, keys)
    values = values / (tl.sum(values, 1)[:, None] + 1e-20) if NORMALIZE else values * SCALE
    to = row[:, None] * TOP_K + slot
    stored = inside[:, None] & (slot < TOP_K)
    tl.store(ids + to, chosen, mask=stored)
    tl.store(weights + to, values, mask=stored)
