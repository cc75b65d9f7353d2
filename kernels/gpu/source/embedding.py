"""Rows of a table."""

import triton
import triton.language as tl


@triton.jit
def embedding(tokens, table, out, rows, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + row).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + row * N + n, tl.load(table + token * N + n, mask=n < N), mask=n < N)
