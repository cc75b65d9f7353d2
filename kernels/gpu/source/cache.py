"""What happens between the projections and attention: latent norm, rotary embedding, cache rows."""

import triton
import triton.language as tl


@triton.jit
def _rotated(values, table_cos, table_sin, position, ROPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # values [ROWS, BLOCK] fp32 in interleaved pairs; all zero where there is no position
    pair = tl.arange(0, BLOCK // 2)
    known = (pair < ROPE // 2) & (position >= 0)
    cos = tl.load(table_cos + position * (ROPE // 2) + pair, mask=known, other=0.0)[None, :]
    sin = tl.load(table_sin + position * (ROPE // 2) + pair, mask=known, other=0.0)[None, :]
    a, b = tl.split(tl.reshape(values, (ROWS, BLOCK // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (ROWS, BLOCK))


@triton.jit
def latent_cache(
    kv, weight, cos, sin, positions, slots, cache, rows, LATENT: tl.constexpr, ROPE: tl.constexpr,
    KV_STRIDE: tl.constexpr, EPS: tl.constexpr, LATENT_BLOCK: tl.constexpr, ROPE_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        kv += row * KV_STRIDE
        cache += slot * (LATENT + ROPE)
        at = tl.arange(0, LATENT_BLOCK)
        inside = at < LATENT
        latent = tl.load(kv + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(latent * latent, 0) / LATENT + EPS)
        w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(cache + at, (latent * scale * w).to(cache.dtype.element_ty), mask=inside)
        at = LATENT + tl.arange(0, ROPE_BLOCK)[None, :]
        inside = at < LATENT + ROPE
        key = tl.load(kv + at, mask=inside, other=0.0).to(tl.float32)
        key = _rotated(key, cos, sin, tl.load(positions + row).to(tl.int64), ROPE, 1, ROPE_BLOCK)
        tl.store(cache + at, key.to(cache.dtype.element_ty), mask=inside)


@triton.jit
def rope_query(
    q, cos, sin, positions, out, rows, HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr,
    Q_ROW: tl.constexpr, OUT_ROW: tl.constexpr, OUT_HEAD: tl.constexpr, OUT_OFFSET: tl.constexpr,
    BLOCK_H: tl.constexpr, ROPE_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    at = tl.arange(0, ROPE_BLOCK)[None, :]
    inside = (head < HEADS) & (at < ROPE)
    value = tl.load(q + row * Q_ROW + head * (NOPE + ROPE) + NOPE + at, mask=inside, other=0.0).to(tl.float32)
    value = _rotated(value, cos, sin, tl.load(positions + row).to(tl.int64), ROPE, BLOCK_H, ROPE_BLOCK)
    # out may be q: nothing is written before everything is read
    tl.debug_barrier()
    tl.store(out + row * OUT_ROW + head * OUT_HEAD + OUT_OFFSET + at, value.to(out.dtype.element_ty), mask=inside)
