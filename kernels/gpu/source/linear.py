"""Products of packed rows with row-major weights: plain, gathered, split over K, gated, one per head.

One tile of the result is made in one of three forms. BLOCK_M == 1: products in fp32 on the CUDA cores, summed
once at the end. SWAP: weight rows on the M side of the tensor cores, for tiles of few rows. Otherwise plain.
"""

import triton
import triton.language as tl


@triton.jit
def tile_of(
    rows, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """(row tile, column tile) of a program: GROUP_M row tiles go through the columns together, for the L2 cache."""
    program = tl.program_id(0)
    columns: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    first = program // (GROUP_M * columns) * GROUP_M
    height = tl.minimum(tl.cdiv(rows, BLOCK_M) - first, GROUP_M)
    within = program % (GROUP_M * columns)
    return first + within % height, within // height


@triton.jit
def lines_of(base, tile, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to the lines of a tile: one 64-bit product, as the offsets within a tile are small."""
    return base + tile.to(tl.int64) * (BLOCK * STRIDE) + tl.arange(0, BLOCK) * STRIDE


@triton.jit
def load_tile(
    lines, inside, start, stop, BLOCK: tl.constexpr, MASK_LINES: tl.constexpr, MASK_K: tl.constexpr,
    POLICY: tl.constexpr,
):  # fmt: skip
    """[lines, BLOCK]: elements start .. of every line (a pointer), 0 where not inside or from stop on."""
    k = start + tl.arange(0, BLOCK)
    at = lines[:, None] + k[None, :]
    if MASK_LINES and MASK_K:
        tile = tl.load(at, mask=inside[:, None] & (k < stop)[None, :], other=0.0, eviction_policy=POLICY)
    elif MASK_LINES:
        tile = tl.load(at, mask=inside[:, None], other=0.0, eviction_policy=POLICY)
    elif MASK_K:
        tile = tl.load(at, mask=(k < stop)[None, :], other=0.0, eviction_policy=POLICY)
    else:
        tile = tl.load(at, eviction_policy=POLICY)
    return tile


@triton.jit
def hidden(start, stop, rows):
    """stop, but not known when compiling: ptxas unrolls a loop of known length whole, and then spills."""
    return tl.where(rows > 0, stop, start)


@triton.jit
def nothing(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr):
    """An accumulator of zeros."""
    if BLOCK_M == 1:
        total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    elif SWAP:
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    return total


@triton.jit
def add_product(x, w, total, BLOCK_M: tl.constexpr, SWAP: tl.constexpr):
    if BLOCK_M == 1:
        total += w.to(tl.float32) * x.to(tl.float32)
    elif SWAP:
        total = tl.dot(w, tl.trans(x), total, input_precision="ieee")
    else:
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    return total


@triton.jit
def finish(total, BLOCK_M: tl.constexpr, SWAP: tl.constexpr):
    """The accumulator as [BLOCK_M, BLOCK_N]."""
    if BLOCK_M == 1:
        total = tl.sum(total, 1)[None, :]
    elif SWAP:
        total = tl.trans(total)
    return total


@triton.jit
def linear(
    x, index, w, out, partial, rows, N: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr, INDEXED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, GROUP_M: tl.constexpr, PART: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    MASK_N: tl.constexpr = N % BLOCK_N != 0
    MASK_K: tl.constexpr = K % BLOCK_K != 0 or PART % BLOCK_K != 0
    POLICY: tl.constexpr = "evict_first" if BLOCK_M < 64 else ""
    tile_m, tile_n = tile_of(rows, N, BLOCK_M, BLOCK_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if INDEXED:
        source = tl.load(index + row, mask=row < rows, other=0).to(tl.int64)
        x_lines = x + source * X_STRIDE
    else:
        x_lines = lines_of(x, tile_m, X_STRIDE, BLOCK_M)
    w_lines = lines_of(w, tile_n, K, BLOCK_N)
    part = tl.program_id(1)
    start = part * PART
    stop = tl.minimum(start + PART, K)
    total = nothing(BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
    for k in range(start, hidden(start, stop, rows), BLOCK_K):
        x_tile = load_tile(x_lines, row < rows, k, stop, BLOCK_K, True, MASK_K, "")
        w_tile = load_tile(w_lines, n < N, k, stop, BLOCK_K, MASK_N, MASK_K, POLICY)
        total = add_product(x_tile, w_tile, total, BLOCK_M, SWAP)
    total = finish(total, BLOCK_M, SWAP)
    inside = (row < rows)[:, None] & (n < N)[None, :]
    if SPLIT_K > 1:
        partial_lines = lines_of(partial + part.to(tl.int64) * rows * N, tile_m, N, BLOCK_M)
        tl.store(partial_lines[:, None] + n[None, :], total, mask=inside)
    else:
        out_lines = lines_of(out, tile_m, OUT_STRIDE, BLOCK_M)
        tl.store(out_lines[:, None] + n[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def split_k_sum(
    partial, out, rows, N: tl.constexpr, OUT_STRIDE: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT_K):
        total += tl.load(partial + (row + part * rows) * N + n, mask=n < N, other=0.0)
    tl.store(out + row * OUT_STRIDE + n, total.to(out.dtype.element_ty), mask=n < N)


@triton.jit
def linear_swiglu(
    x, w, out, rows, N: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    MASK_N: tl.constexpr = N % BLOCK_N != 0
    MASK_K: tl.constexpr = K % BLOCK_K != 0
    POLICY: tl.constexpr = "evict_first" if BLOCK_M < 64 else ""
    tile_m, tile_n = tile_of(rows, N, BLOCK_M, BLOCK_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x_lines = lines_of(x, tile_m, X_STRIDE, BLOCK_M)
    gate_lines = lines_of(w, tile_n, K, BLOCK_N)
    up_lines = gate_lines + N * K
    gate = nothing(BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
    up = nothing(BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
    for k in range(0, hidden(0, K, rows), BLOCK_K):
        x_tile = load_tile(x_lines, row < rows, k, K, BLOCK_K, True, MASK_K, "")
        gate_tile = load_tile(gate_lines, n < N, k, K, BLOCK_K, MASK_N, MASK_K, POLICY)
        gate = add_product(x_tile, gate_tile, gate, BLOCK_M, SWAP)
        up_tile = load_tile(up_lines, n < N, k, K, BLOCK_K, MASK_N, MASK_K, POLICY)
        up = add_product(x_tile, up_tile, up, BLOCK_M, SWAP)
    gated = finish(gate, BLOCK_M, SWAP)
    gated = gated * tl.sigmoid(gated) * finish(up, BLOCK_M, SWAP)
    out_at = lines_of(out, tile_m, N, BLOCK_M)[:, None] + n[None, :]
    tl.store(out_at, gated.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (n < N)[None, :])


@triton.jit
def head_linear(
    x, w, out, rows, HEADS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, X_ROW: tl.constexpr,
    X_HEAD: tl.constexpr, OUT_ROW: tl.constexpr, OUT_HEAD: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    MASK_N: tl.constexpr = N % BLOCK_N != 0
    MASK_K: tl.constexpr = K % BLOCK_K != 0
    POLICY: tl.constexpr = "evict_first" if BLOCK_M < 64 else ""
    tile_m, tile_n = tile_of(rows, N, BLOCK_M, BLOCK_N, GROUP_M)
    head = tl.program_id(1).to(tl.int64)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x_lines = lines_of(x + head * X_HEAD, tile_m, X_ROW, BLOCK_M)
    w_lines = lines_of(w + head * (N * K), tile_n, K, BLOCK_N)
    total = nothing(BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
    stop = K
    if K > BLOCK_K:
        stop = hidden(0, K, rows)
    for k in range(0, stop, BLOCK_K):
        x_tile = load_tile(x_lines, row < rows, k, K, BLOCK_K, True, MASK_K, "")
        w_tile = load_tile(w_lines, n < N, k, K, BLOCK_K, MASK_N, MASK_K, POLICY)
        total = add_product(x_tile, w_tile, total, BLOCK_M, SWAP)
    total = finish(total, BLOCK_M, SWAP)
    out_at = lines_of(out + head * OUT_HEAD, tile_m, OUT_ROW, BLOCK_M)[:, None] + n[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (n < N)[None, :])
