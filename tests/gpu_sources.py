"""Triton kernels for tests of the compile stage. Imports nothing but Triton: compiling processes load it."""

import os
import signal
import subprocess

import triton
import triton.language as tl

SLEEP = "86399.25"
"""Argument of a `sleep` that stands for a compiler that hangs."""


@triton.jit
def twice(value):
    return value * 2


@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = twice(tl.load(x + at, mask=at < n, other=0.0).to(tl.float32))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < n)


@triton.jit
def idle(x, out, n, BLOCK: tl.constexpr):
    """Writes nothing, so that nothing is left of it."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    twice(tl.load(x + at, mask=at < n))


@triton.jit
def matmul(a, b, out, k, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """out [BM, BN] of one program = a [BM, k] b [k, N]; everything a multiple of its block."""
    m, n, j = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        left = tl.load(a + m[:, None] * k + (start + j)[None, :])
        right = tl.load(b + (start + j)[:, None] * N + n[None, :])
        total = tl.dot(left, right, total)
    tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty))


def _hang():
    subprocess.run(["sleep", SLEEP])


def _fail():
    raise ValueError("no such tile")


MISHAPS = {
    "none": lambda: None,
    "hang": _hang,
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(3),
    "raise": _fail,
}


@triton.constexpr_function
def mishap(kind):
    """Happens to the process that compiles, while it does."""
    print("about to", kind)
    MISHAPS[list(MISHAPS)[kind]]()
    return kind


@triton.jit
def unlucky(x, KIND: tl.constexpr):
    kind: tl.constexpr = mishap(KIND)
    tl.store(x, kind)
