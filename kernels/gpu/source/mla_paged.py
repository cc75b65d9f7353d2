"""Absorbed MLA attention over a paged latent cache."""
# ruff: noqa: RUF005 - Triton has no starred expressions

import triton
import triton.language as tl


@triton.jit
def _tile(base, rows, inside, FROM: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Columns FROM.. of the rows at offsets `rows` [M]: [M, BLOCK], zero beyond COUNT and outside."""
    at = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if COUNT < BLOCK:
        mask = mask & (at < COUNT)[None, :]
    return tl.load(base + (rows[:, None] + (FROM + at)[None, :]), mask=mask, other=0.0)


@triton.jit
def _pages(table, start, end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pages of the positions from `start` on: a scalar where a tile lies in one page, else [BLOCK_N]."""
    if PAGE % BLOCK_N == 0:
        return tl.load(table + start // PAGE, mask=start < end, other=0)
    else:
        token = start + tl.arange(0, BLOCK_N)
        return tl.load(table + token // PAGE, mask=token < end, other=0)


@triton.jit
def _scores(q, k, acc, SWAP: tl.constexpr):
    if SWAP:
        return tl.dot(k, tl.trans(q), acc, input_precision="ieee")
    else:
        return tl.dot(q, tl.trans(k), acc, input_precision="ieee")


@triton.jit
def _values(p, k, acc, SWAP: tl.constexpr):
    if SWAP:
        return tl.dot(tl.trans(k), p, acc, input_precision="ieee")
    else:
        return tl.dot(p, k, acc, input_precision="ieee")


@triton.jit
def _attend(
    q, q_rows, q_inside, reach, cache, table, begin, end, LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr,
    SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr,
    CHUNKS: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Softmax over positions begin <= p < end, query m up to reach[m]: sums per chunk of columns, log2 of the
    weights' sum and its inverse. Position ``begin`` must be in everyone's reach.

    SWAP computes the transposes, so that positions and columns are on the long side of the matrix products."""
    WIDTH: tl.constexpr = LATENT + ROPE
    CHUNK: tl.constexpr = BLOCK_L // CHUNKS
    axis: tl.constexpr = 0 if SWAP else 1
    q_latent = ()
    acc = ()
    for c in tl.static_range(CHUNKS):
        q_latent = q_latent + (_tile(q, q_rows, q_inside, c * CHUNK, LATENT - c * CHUNK, CHUNK),)
        acc = acc + (tl.zeros([CHUNK, BLOCK_M] if SWAP else [BLOCK_M, CHUNK], tl.float32),)
    q_rope = _tile(q, q_rows, q_inside, LATENT, ROPE, BLOCK_R)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    page = _pages(table, begin, end, PAGE, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        k_inside = token < end
        if PAGE % BLOCK_N == 0:
            k = cache + (page.to(tl.int64) * PAGE + start % PAGE) * WIDTH
            k_rows = tl.arange(0, BLOCK_N) * WIDTH
        else:
            k = cache
            k_rows = page.to(tl.int64) * (PAGE * WIDTH) + token % PAGE * WIDTH  # a sum times WIDTH 3.6 calls aligned
        page = _pages(table, start + BLOCK_N, end, PAGE, BLOCK_N)
        k_latent = ()
        for c in tl.static_range(CHUNKS):
            k_latent = k_latent + (_tile(k, k_rows, k_inside, c * CHUNK, LATENT - c * CHUNK, CHUNK),)
        k_rope = _tile(k, k_rows, k_inside, LATENT, ROPE, BLOCK_R)
        s = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
        for c in tl.static_range(CHUNKS):
            s = _scores(q_latent[c], k_latent[c], s, SWAP)
        s = _scores(q_rope, k_rope, s, SWAP)
        token = tl.expand_dims(token, 1 - axis)
        s = tl.where(
            (token < end) & (token <= tl.expand_dims(reach, axis)), s * (SCALE * 1.4426950408889634), float("-inf")
        )
        higher = tl.maximum(top, tl.max(s, axis))
        p = tl.exp2(s - tl.expand_dims(higher, axis))
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, axis)
        top = higher
        p = p.to(cache.dtype.element_ty)
        shrink = tl.expand_dims(shrink, axis)
        new = ()
        for c in tl.static_range(CHUNKS):
            new = new + (_values(p, k_latent[c], acc[c] * shrink, SWAP),)
        acc = new
    return acc, top + tl.log2(total), tl.expand_dims(1.0 / total, axis)


@triton.jit
def _store(
    base, rows, inside, acc, factor, LATENT: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, SWAP: tl.constexpr
):
    """`acc` times `factor` to the rows at offsets `rows` [M]."""
    for c in tl.static_range(CHUNKS):
        column = tl.arange(0, CHUNK)
        value = (acc[c] * factor).to(base.dtype.element_ty)
        if SWAP:
            at = rows[None, :] + (c * CHUNK + column)[:, None]
            mask = inside[None, :]
            if LATENT - c * CHUNK < CHUNK:
                mask = mask & (column < LATENT - c * CHUNK)[:, None]
        else:
            at = rows[:, None] + (c * CHUNK + column)[None, :]
            mask = inside[:, None]
            if LATENT - c * CHUNK < CHUNK:
                mask = mask & (column < LATENT - c * CHUNK)[None, :]
        tl.store(base + at, value, mask=mask)


@triton.jit
def _clear(base, rows, inside, LATENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr):
    column = tl.arange(0, BLOCK_L)
    mask = inside[:, None] & (column < LATENT)[None, :]
    zero = tl.zeros([BLOCK_M, BLOCK_L], base.dtype.element_ty)
    tl.store(base + rows[:, None] + column[None, :], zero, mask=mask)


@triton.jit
def mla_decode(
    q, cache, page_table, positions, sequence, parts, partial, lse, out, rows, HEADS: tl.constexpr,
    LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, MAX_PAGES: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, CHUNKS: tl.constexpr,
    SWAP: tl.constexpr,
):  # fmt: skip
    CHUNK: tl.constexpr = BLOCK_L // CHUNKS
    WIDTH: tl.constexpr = LATENT + ROPE
    part = parts + tl.program_id(0) * 5
    first = tl.load(part).to(tl.int64)
    last = tl.load(part + 5).to(tl.int64)
    for row in range(first, tl.minimum(last + 1, rows)):
        head = tl.arange(0, BLOCK_H)
        tile = tl.program_id(1) * BLOCK_H
        inside = tl.full([BLOCK_H], True, tl.int1) if HEADS % BLOCK_H == 0 else head < HEADS - tile
        position = tl.load(positions + row)
        block = tl.where(row == first, tl.load(part + 1), 0)
        end = tl.where(row == last, tl.minimum(tl.load(part + 6) * PAGE, position + 1), position + 1)
        at = row * HEADS + tile
        if block * PAGE < end:
            table = page_table + tl.load(sequence + row).to(tl.int64) * MAX_PAGES
            reach = tl.full([BLOCK_H], 0, tl.int32) + position
            acc, weight, factor = _attend(
                q + at * WIDTH, head * WIDTH, inside, reach, cache, table, block * PAGE, end, LATENT, ROPE, PAGE, SCALE,
                BLOCK_H, BLOCK_N, BLOCK_L, BLOCK_R, CHUNKS, SWAP,
            )  # fmt: skip
            if (block == 0) & (end == position + 1):
                _store(out + at * LATENT, head * LATENT, inside, acc, factor, LATENT, CHUNKS, CHUNK, SWAP)
            else:
                slot = tl.where(block > 0, tl.load(part + 2), tl.load(part + 7) - 1).to(tl.int64) * HEADS + tile
                tl.store(lse + slot + head, weight, mask=inside)
                _store(partial + slot * LATENT, head * LATENT, inside, acc, factor, LATENT, CHUNKS, CHUNK, SWAP)
        elif position < 0:
            _clear(out + at * LATENT, head * LATENT, inside, LATENT, BLOCK_H, BLOCK_L)


@triton.jit
def mla_extend(
    q, cache, page_table, query_start, positions, out, rows, batch, HEADS: tl.constexpr, LATENT: tl.constexpr,
    ROPE: tl.constexpr, PAGE: tl.constexpr, MAX_PAGES: tl.constexpr, MAX_BATCH: tl.constexpr, SCALE: tl.constexpr,
    QUERY_TILE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    BLOCK_M: tl.constexpr = QUERY_TILE * BLOCK_H
    WIDTH: tl.constexpr = LATENT + ROPE
    number = tl.program_id(0)
    at = tl.arange(0, MAX_BATCH)
    starts = tl.load(query_start + at, mask=at < batch, other=0)
    counts = tl.load(query_start + at + 1, mask=at < batch, other=0) - starts
    upto = tl.cumsum(tl.cdiv(counts, QUERY_TILE), 0)
    passed = (upto <= number) & (at < batch)
    sequence = tl.sum(passed.to(tl.int32), 0)
    first = tl.load(query_start + sequence) + (number - tl.max(tl.where(passed, upto, 0), 0)) * QUERY_TILE
    tile = tl.program_id(1) * BLOCK_H
    query = tl.arange(0, BLOCK_M) // BLOCK_H
    head = tl.arange(0, BLOCK_M) % BLOCK_H
    base = first.to(tl.int64) * HEADS + tile
    offset = query * HEADS + head
    if sequence < batch:
        count = tl.minimum(tl.load(query_start + sequence + 1) - first, QUERY_TILE)
        inside = query < count
        if HEADS % BLOCK_H:
            inside = inside & (head < HEADS - tile)
        position = tl.load(positions + first)
        table = page_table + sequence.to(tl.int64) * MAX_PAGES
        acc, _, factor = _attend(
            q + base * WIDTH, offset * WIDTH, inside, position + query, cache, table, 0, position + count, LATENT,
            ROPE, PAGE, SCALE, BLOCK_M, BLOCK_N, BLOCK_L, BLOCK_R, CHUNKS, False,
        )  # fmt: skip
        _store(out + base * LATENT, offset * LATENT, inside, acc, factor, LATENT, CHUNKS, BLOCK_L // CHUNKS, False)
    else:
        inside = (query < rows - first) & (head < HEADS - tile)
        _clear(out + base * LATENT, offset * LATENT, inside, LATENT, BLOCK_M, BLOCK_L)
