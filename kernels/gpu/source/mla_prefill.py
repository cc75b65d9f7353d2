"""Causal MLA over keys and values per head."""

import triton
import triton.language as tl


@triton.jit
def _tile(at, rows, columns, MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr):
    if MASK_ROWS and MASK_COLUMNS:
        value = tl.load(at, mask=rows & columns, other=0)
    elif MASK_ROWS:
        value = tl.load(at, mask=rows, other=0)
    elif MASK_COLUMNS:
        value = tl.load(at, mask=columns, other=0)
    else:
        value = tl.load(at)
    return value


@triton.jit
def _step(
    first, length, last, q_nope, q_rope, total, peak, weight, kv, cache, slots, SCALE: tl.constexpr,
    KV_ROW: tl.constexpr, CACHE_ROW: tl.constexpr, LATENT: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr,
    V: tl.constexpr, NOPE_BLOCK: tl.constexpr, ROPE_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    # keys first..first + BLOCK_N of one head; query i sees those up to last[i]. DIAGONAL: not every query sees all
    key = first + tl.arange(0, BLOCK_N)
    there = key < length
    nope, rope, v = tl.arange(0, NOPE_BLOCK), tl.arange(0, ROPE_BLOCK), tl.arange(0, V_BLOCK)
    slot = _tile(slots + key, there, there, DIAGONAL, False).to(tl.int64)
    row = kv + key.to(tl.int64) * KV_ROW
    k = _tile(row[None, :] + nope[:, None], there[None, :], nope[:, None] < NOPE, DIAGONAL, NOPE_BLOCK != NOPE)
    k_rope = _tile(
        cache + LATENT + slot[None, :] * CACHE_ROW + rope[:, None], there[None, :], rope[:, None] < ROPE,
        DIAGONAL, ROPE_BLOCK != ROPE,
    )  # fmt: skip
    scores = tl.dot(q_nope, k, input_precision="ieee")
    scores = tl.dot(q_rope, k_rope, scores, input_precision="ieee")
    if DIAGONAL:
        scores = tl.where(key[None, :] <= last[:, None], scores, float("-inf"))
    risen = tl.maximum(peak, tl.max(scores, 1) * SCALE)
    p = tl.exp2(scores * SCALE - risen[:, None])
    fade = tl.exp2(peak - risen)
    weight = weight * fade + tl.sum(p, 1)
    value = _tile(row[:, None] + NOPE + v[None, :], there[:, None], v[None, :] < V, DIAGONAL, V_BLOCK != V)
    total = tl.dot(p.to(value.dtype), value, total * fade[:, None], input_precision="ieee")
    return total, risen, weight


@triton.jit
def mla_prefill(
    q, kv, cache, slots, query_start, context_start, out, rows, batch, HEADS: tl.constexpr, NOPE: tl.constexpr,
    ROPE: tl.constexpr, V: tl.constexpr, LATENT: tl.constexpr, Q_ROW: tl.constexpr, SCALE: tl.constexpr,
    BATCH_BLOCK: tl.constexpr, NOPE_BLOCK: tl.constexpr, ROPE_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # Sequence b has the tiles from start[b] // BLOCK_M + b on, some of them empty. The last ones of a sequence see
    # most keys, and run first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    b = tl.arange(0, BATCH_BLOCK)
    starts = tl.load(query_start + b, mask=b < batch, other=0) // BLOCK_M + b
    sequence = tl.sum(((starts <= tile) & (b < batch)).to(tl.int32), 0) - 1
    start = tl.load(query_start + sequence)
    count = tl.load(query_start + sequence + 1) - start
    first = (tile - (start // BLOCK_M + sequence)) * BLOCK_M
    if first < count:
        context = tl.load(context_start + sequence)
        length = tl.load(context_start + sequence + 1) - context
        query = first + tl.arange(0, BLOCK_M)
        last = length - count + query
        nope, rope, v = tl.arange(0, NOPE_BLOCK), tl.arange(0, ROPE_BLOCK), tl.arange(0, V_BLOCK)
        there = query[:, None] < count
        row = q + (start + query).to(tl.int64)[:, None] * Q_ROW + head * (NOPE + ROPE)
        q_nope = tl.load(row + nope[None, :], mask=there & (nope[None, :] < NOPE), other=0)
        q_rope = tl.load(row + NOPE + rope[None, :], mask=there & (rope[None, :] < ROPE), other=0)
        kv += context.to(tl.int64) * (HEADS * (NOPE + V)) + head * (NOPE + V)
        slots += context
        total = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
        peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        weight = tl.zeros([BLOCK_M], tl.float32)
        shared = (length - count + first + 1) // BLOCK_N * BLOCK_N
        for at in range(0, shared, BLOCK_N):
            total, peak, weight = _step(
                at, length, last, q_nope, q_rope, total, peak, weight, kv, cache, slots, SCALE, HEADS * (NOPE + V),
                LATENT + ROPE, LATENT, NOPE, ROPE, V, NOPE_BLOCK, ROPE_BLOCK, V_BLOCK, BLOCK_N, False,
            )  # fmt: skip
        for at in range(shared, tl.minimum(length, length - count + first + BLOCK_M), BLOCK_N):
            total, peak, weight = _step(
                at, length, last, q_nope, q_rope, total, peak, weight, kv, cache, slots, SCALE, HEADS * (NOPE + V),
                LATENT + ROPE, LATENT, NOPE, ROPE, V, NOPE_BLOCK, ROPE_BLOCK, V_BLOCK, BLOCK_N, True,
            )  # fmt: skip
        to = out + (start + query).to(tl.int64)[:, None] * (HEADS * V) + head * V + v[None, :]
        tl.store(to, (total / weight[:, None]).to(out.dtype.element_ty), mask=there & (v[None, :] < V))
