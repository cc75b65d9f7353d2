"""Grouped GEMMs over entries sorted by expert, and the sum of a token's parts."""

import triton
import triton.language as tl

from dsv2_compile.kernels.gpu.source.linear import add_product, finish, load_tile, nothing


@triton.jit
def _find(offsets, EXPERTS: tl.constexpr, EXPERTS_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, TILES_N: tl.constexpr):
    """The program's expert, at least EXPERTS for a surplus program, and its number among that expert's programs."""
    program = tl.program_id(0)
    e = tl.arange(0, EXPERTS_BLOCK)
    real = e < EXPERTS
    count = tl.load(offsets + e + 1, mask=real, other=0) - tl.load(offsets + e, mask=real, other=0)
    programs = tl.cdiv(count, BLOCK_M) * TILES_N
    expert = tl.sum((tl.cumsum(programs, 0) <= program).to(tl.int32), 0)
    return expert, program - tl.sum(tl.where(e < expert, programs, 0), 0)


@triton.jit
def _unknown(K: tl.constexpr, rows):
    """K, for any rows, but not while compiling: a loop whose length is known is unrolled whole."""
    return tl.minimum(K, K - 1 + rows)


@triton.jit
def moe_up(
    x, w, offsets, order, out, rows, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
):  # fmt: skip
    MASK_K: tl.constexpr = K % BLOCK_K != 0
    POLICY: tl.constexpr = "evict_first" if BLOCK_M < 64 else ""
    expert, tile = _find(offsets, EXPERTS, EXPERTS_BLOCK, BLOCK_M, (N + BLOCK_N - 1) // BLOCK_N)
    if expert >= EXPERTS:
        return
    end = tl.load(offsets + expert + 1)
    begin = tl.load(offsets + expert)
    tiles = tl.cdiv(end - begin, BLOCK_M)
    first = begin + tile % tiles * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = tile // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    # lines beyond the end repeat the last one and are not stored
    line = tl.minimum(m, end - 1 - first)
    token = tl.load(order + first + line) // TOP_K
    x_lines = x + token.to(tl.int64) * K
    gate_lines = w + expert.to(tl.int64) * (2 * N * K) + tl.minimum(n, N - 1) * K
    gate = nothing(BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
    up = nothing(BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
    for k in range(0, _unknown(K, rows), BLOCK_K):
        x_tile = load_tile(x_lines, True, k, K, BLOCK_K, False, MASK_K, "")
        gate_tile = load_tile(gate_lines, True, k, K, BLOCK_K, False, MASK_K, POLICY)
        gate = add_product(x_tile, gate_tile, gate, BLOCK_M, SWAP)
        up_tile = load_tile(gate_lines + N * K, True, k, K, BLOCK_K, False, MASK_K, POLICY)
        up = add_product(x_tile, up_tile, up, BLOCK_M, SWAP)
    value = finish(gate, BLOCK_M, SWAP)
    value = value * tl.sigmoid(value) * finish(up, BLOCK_M, SWAP)
    to = out + first.to(tl.int64) * N + m[:, None] * N + n[None, :]
    tl.store(to, value.to(out.dtype.element_ty), mask=(first + m < end)[:, None] & (n < N)[None, :])


@triton.jit
def moe_down(
    x, w, offsets, order, weights, out, rows, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
):  # fmt: skip
    MASK_K: tl.constexpr = K % BLOCK_K != 0
    POLICY: tl.constexpr = "evict_first" if BLOCK_M < 64 else ""
    expert, tile = _find(offsets, EXPERTS, EXPERTS_BLOCK, BLOCK_M, (N + BLOCK_N - 1) // BLOCK_N)
    if expert >= EXPERTS:
        return
    end = tl.load(offsets + expert + 1)
    begin = tl.load(offsets + expert)
    tiles = tl.cdiv(end - begin, BLOCK_M)
    first = begin + tile % tiles * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = tile // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    # lines beyond the end repeat the last one and are not stored
    line = tl.minimum(m, end - 1 - first)
    entry = tl.load(order + first + line)
    x_lines = x + first.to(tl.int64) * K + line * K
    w_lines = w + expert.to(tl.int64) * (N * K) + tl.minimum(n, N - 1) * K
    value = nothing(BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
    for k in range(0, _unknown(K, rows), BLOCK_K):
        x_tile = load_tile(x_lines, True, k, K, BLOCK_K, False, MASK_K, "")
        w_tile = load_tile(w_lines, True, k, K, BLOCK_K, False, MASK_K, POLICY)
        value = add_product(x_tile, w_tile, value, BLOCK_M, SWAP)
    value = finish(value, BLOCK_M, SWAP)
    value = value * tl.load(weights + entry)[:, None]
    to = out + entry.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(to, value.to(out.dtype.element_ty), mask=(first + m < end)[:, None] & (n < N)[None, :])


@triton.jit
def moe_combine(
    parts, shared, out, rows, N: tl.constexpr, TOP_K: tl.constexpr, SHARED: tl.constexpr, BLOCK_N: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < N
    total = tl.zeros((BLOCK_N,), tl.float32)
    for j in tl.static_range(TOP_K):
        total += tl.load(parts + (row * TOP_K + j) * N + column, mask=inside, other=0.0).to(tl.float32)
    if SHARED:
        total += tl.load(shared + row * N + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + column, total.to(out.dtype.element_ty), mask=inside)
