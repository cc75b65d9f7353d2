"""RMSNorm."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(
    x, residual, index, weight, out, total, rows, N: tl.constexpr, X_STRIDE: tl.constexpr, EPS: tl.constexpr,
    RESIDUAL: tl.constexpr, INDEXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source = row
    if INDEXED:
        source = tl.load(index + row).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < N
    value = tl.load(x + source * X_STRIDE + at, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + source * N + at, mask=inside, other=0.0).to(tl.float32)
        stored = value.to(total.dtype.element_ty)
        tl.store(total + row * N + at, stored, mask=inside)
        value = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / N + EPS)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + at, (value * scale * w).to(out.dtype.element_ty), mask=inside)
