"""Calls of `linear`. ``hint`` is ROWS_HINT: 1 makes a tile of one row, up to 16 swapped tiles, more plain ones."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.check import Case, Tensors, normal
from dsv2_compile.kernels.gpu.kernel import Kernel
from dsv2_compile.kernels.gpu.linear import (
    HEAD_LINEAR,
    LINEAR,
    LINEAR_FP32,
    LINEAR_SWIGLU,
    SPLIT_K_SUM,
    SPLIT_K_SUM_FP32,
)


def _linear(
    kernel: Kernel,
    rows: int,
    n: int,
    k: int,
    hint: int = 16,
    split: int = 1,
    x_pad: int = 0,
    out_pad: int = 0,
    of: int | None = None,
) -> Case:
    """``of``: rows of x to gather from. ``x_pad``, ``out_pad``: elements between the end of a row and the next."""
    dims = {
        "N": n,
        "K": k,
        "X_STRIDE": k + x_pad,
        "OUT_STRIDE": n + out_pad,
        "INDEXED": of is not None,
        "ROWS_HINT": hint,
        "SPLIT_K": split,
    }

    def inputs(g: torch.Generator) -> Tensors:
        index = None if of is None else torch.randint(of, (rows,), generator=g, dtype=torch.int32)
        return {"x": normal(g, of or rows, k + x_pad), "index": index, "w": normal(g, n, k, scale=k**-0.5)}

    name = f"{rows} rows, {k} to {n}, hint {hint}" + f", {split} parts" * (split > 1) + ", strided" * bool(x_pad)
    name += f", rows of {of}" * (of is not None) + ", wider out" * bool(out_pad)
    outputs = {"partial": (split, rows, n)} if split > 1 else {"out": (rows, n + out_pad)}
    return Case(name, kernel, dims, {"rows": rows}, inputs, outputs)


def _sum(kernel: Kernel, rows: int, n: int, split: int, out_pad: int = 0) -> Case:
    return Case(
        f"{split} parts of {rows} rows of {n}" + ", wider out" * bool(out_pad),
        kernel,
        {"N": n, "OUT_STRIDE": n + out_pad, "SPLIT_K": split},
        {"rows": rows},
        lambda g: {"partial": normal(g, split, rows, n)},
        {"out": (rows, n + out_pad)},
    )


def _swiglu(rows: int, n: int, k: int, hint: int = 16, x_pad: int = 0) -> Case:
    return Case(
        f"{rows} rows, {k} to {n}, hint {hint}" + ", strided" * bool(x_pad),
        LINEAR_SWIGLU,
        {"N": n, "K": k, "X_STRIDE": k + x_pad, "ROWS_HINT": hint},
        {"rows": rows},
        lambda g: {"x": normal(g, rows, k + x_pad), "w": normal(g, 2 * n, k, scale=2 * k**-0.5)},
        {"out": (rows, n)},
    )


def _heads(rows: int, heads: int, n: int, k: int, hint: int = 16, x_pad: int = 0, out_pad: int = 0) -> Case:
    """``x_pad``, ``out_pad``: elements after each head, and as many again after each row."""
    x_row, out_row = heads * (k + x_pad) + x_pad, heads * (n + out_pad) + out_pad
    dims = {
        "HEADS": heads,
        "N": n,
        "K": k,
        "X_ROW": x_row,
        "X_HEAD": k + x_pad,
        "OUT_ROW": out_row,
        "OUT_HEAD": n + out_pad,
        "ROWS_HINT": hint,
    }
    return Case(
        f"{rows} rows, {heads} heads, {k} to {n}, hint {hint}" + f", pads {x_pad} and {out_pad}",
        HEAD_LINEAR,
        dims,
        {"rows": rows},
        lambda g: {"x": normal(g, rows, x_row), "w": normal(g, heads, n, k, scale=k**-0.5)},
        {"out": (rows, out_row)},
    )


CASES = {
    "linear": [
        _linear(LINEAR, 1, 96, 192, hint=1),
        _linear(LINEAR, 3, 37, 300, hint=1, x_pad=5, out_pad=3),
        _linear(LINEAR, 2, 10, 512, hint=1, split=3),
        _linear(LINEAR, 1, 64, 128),
        _linear(LINEAR, 16, 100, 256),
        _linear(LINEAR, 17, 33, 48, x_pad=16),
        _linear(LINEAR, 5, 130, 257, out_pad=7, of=3),
        _linear(LINEAR, 9, 64, 130, of=40),
        _linear(LINEAR, 4, 70, 512, split=4),
        _linear(LINEAR, 19, 64, 300, split=4),
        _linear(LINEAR, 3, 65, 1000, split=3, of=2, x_pad=24),
        _linear(LINEAR, 33, 80, 200, hint=32),
        _linear(LINEAR, 65, 96, 100, hint=64),
        _linear(LINEAR, 1, 200, 64, hint=4096),
        _linear(LINEAR, 130, 130, 96, hint=4096, x_pad=32, out_pad=30),
        _linear(LINEAR, 140, 128, 257, hint=4096, split=2, of=9),
        _linear(LINEAR, 2, 1, 1),
        _linear(LINEAR, 2, 8460, 40),
        _linear(LINEAR, 130, 1100, 40, hint=4096),
    ],
    "linear_fp32": [
        _linear(LINEAR_FP32, 1, 200, 256, hint=1),
        _linear(LINEAR_FP32, 1, 50, 96, hint=1, of=6),
        _linear(LINEAR_FP32, 2, 128, 160),
        _linear(LINEAR_FP32, 7, 131, 65, of=20),
        _linear(LINEAR_FP32, 20, 40, 512, x_pad=3, out_pad=1),
        _linear(LINEAR_FP32, 3, 90, 768, split=2),
        _linear(LINEAR_FP32, 3, 90, 200, split=8),
        _linear(LINEAR_FP32, 70, 129, 80, hint=4096),
    ],
    "split_k_sum": [
        _sum(SPLIT_K_SUM, 1, 2048, 2),
        _sum(SPLIT_K_SUM, 3, 513, 4),
        _sum(SPLIT_K_SUM, 16, 33, 3, out_pad=5),
        _sum(SPLIT_K_SUM, 2, 1, 16),
        _sum(SPLIT_K_SUM, 5, 640, 8),
        _sum(SPLIT_K_SUM, 1, 1, 1),
        _sum(SPLIT_K_SUM, 4, 1000, 5, out_pad=24),
        _sum(SPLIT_K_SUM, 33, 16, 2),
    ],
    "split_k_sum_fp32": [
        _sum(SPLIT_K_SUM_FP32, 1, 1000, 2),
        _sum(SPLIT_K_SUM_FP32, 3, 511, 4),
        _sum(SPLIT_K_SUM_FP32, 16, 33, 3, out_pad=5),
        _sum(SPLIT_K_SUM_FP32, 2, 1, 16),
        _sum(SPLIT_K_SUM_FP32, 5, 512, 8),
        _sum(SPLIT_K_SUM_FP32, 1, 7, 1),
        _sum(SPLIT_K_SUM_FP32, 4, 100, 5, out_pad=28),
        _sum(SPLIT_K_SUM_FP32, 33, 16, 2),
    ],
    "linear_swiglu": [
        _swiglu(1, 64, 128, hint=1),
        _swiglu(3, 45, 100, hint=1, x_pad=7),
        _swiglu(1, 96, 256),
        _swiglu(16, 64, 130),
        _swiglu(18, 70, 48, x_pad=16),
        _swiglu(5, 1, 33),
        _swiglu(40, 100, 64, hint=32),
        _swiglu(65, 33, 90, hint=64),
        _swiglu(130, 136, 100, hint=4096),
        _swiglu(3, 8500, 20, x_pad=4),
    ],
    "head_linear": [
        _heads(1, 4, 32, 64, hint=1),
        _heads(2, 3, 48, 20, hint=1, x_pad=8, out_pad=8),
        _heads(1, 4, 64, 32, out_pad=16),
        _heads(16, 2, 128, 64, x_pad=64),
        _heads(17, 3, 48, 24, x_pad=8, out_pad=8),
        _heads(5, 1, 33, 130, out_pad=1),
        _heads(20, 5, 16, 7, hint=32, x_pad=1),
        _heads(67, 2, 65, 33, hint=64, x_pad=2, out_pad=3),
        _heads(130, 2, 130, 64, hint=4096, out_pad=64),
        _heads(2, 70, 65, 33, x_pad=3, out_pad=2),
    ],
}
