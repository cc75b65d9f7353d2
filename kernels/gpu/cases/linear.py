"""Calls of `linear`. ``hint`` is ROWS_HINT: 1 makes a tile of one row, up to 16 swapped tiles, more plain ones."""

from __future__ import annotations

from functools import partial

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows, heavy_ends, padded
from dsv2_compile.kernels.gpu.check import Case, Outputs, Tensors, always, normal, weights
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel
from dsv2_compile.kernels.gpu.linear import (
    HEAD_LINEAR,
    LINEAR,
    LINEAR_FP32,
    LINEAR_SWIGLU,
    SPLIT_K_SUM,
    SPLIT_K_SUM_FP32,
)


def _product(kernel: Kernel, dims: Dims, rows: int, of: int, pattern: int = 0) -> Case:
    """``of``: rows of x, to gather from where the call does."""
    n, k = int(dims["N"]), int(dims["K"])
    picks = {
        1: lambda g: torch.randint(of, (rows,), generator=g),
        2: lambda g: torch.full((rows,), of - 1),
        3: lambda g: torch.arange(of - 1, -1, -1)[:rows],
    }
    pick = picks.get(pattern, lambda g: torch.randperm(of, generator=g)[:rows])

    def inputs(g: torch.Generator) -> Tensors:
        x = padded(g, of, k, int(dims["X_STRIDE"]))
        return {
            "x": heavy_ends(x, k) if pattern else x,
            "index": pick(g).to(torch.int32) if dims["INDEXED"] else None,
            "w": weights(g, n, k, scale=k**-0.5),
        }

    name = f"{rows} rows, {k} to {n}" + f", strided {dims['X_STRIDE']}" * (dims["X_STRIDE"] != k)
    name += f", rows of {of}" * bool(dims["INDEXED"]) + f", wider out {dims['OUT_STRIDE']}" * (dims["OUT_STRIDE"] != n)
    name += f", pattern {pattern}" * (pattern > 0)
    return Case(name, kernel, dims, {"rows": rows}, inputs, _written(dims, rows))


def _written(dims: Dims, rows: int) -> Outputs:
    """Parts where K is split, the result where it is not."""

    def outputs(config: Config) -> dict[str, tuple[int, ...]]:
        split = config["SPLIT_K"]
        if split > 1:
            return {"partial": (split, rows, int(dims["N"]))}
        return {"out": (rows, int(dims["OUT_STRIDE"]))}

    return outputs


def _build_product(kernel: Kernel, dims: Dims, rows: int, pattern: int) -> Case:
    of = (rows, max(1, rows // 3), rows + 2, 2 * rows + 3)[pattern] if dims["INDEXED"] else rows
    return _product(kernel, dims, rows, of, pattern)


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
    return _product(kernel, dims, rows, of or rows, pattern=1 if of else 0)


def _parts(kernel: Kernel, dims: Dims, rows: int, pattern: int = 0) -> Case:
    n, split = int(dims["N"]), int(dims["SPLIT_K"])

    def inputs(g: torch.Generator) -> Tensors:
        partial = normal(g, split, rows, n)
        if pattern:  # a part that counts for more, and one that is empty
            partial[-1] *= 8
            partial[: split // 2] *= pattern - 1
        return {"partial": partial}

    name = f"{split} parts of {rows} rows of {n}, out {dims['OUT_STRIDE']}" + f", pattern {pattern}" * (pattern > 0)
    return Case(name, kernel, dims, {"rows": rows}, inputs, always(out=(rows, int(dims["OUT_STRIDE"]))))


def _sum(kernel: Kernel, rows: int, n: int, split: int, out_pad: int = 0) -> Case:
    return _parts(kernel, {"N": n, "OUT_STRIDE": n + out_pad, "SPLIT_K": split}, rows)


def _gated(dims: Dims, rows: int, pattern: int = 0) -> Case:
    n, k = int(dims["N"]), int(dims["K"])

    def inputs(g: torch.Generator) -> Tensors:
        x = padded(g, rows, k, int(dims["X_STRIDE"]), scale=0.5 if pattern else 1.0)
        return {"x": heavy_ends(x, k) if pattern else x, "w": weights(g, 2 * n, k, scale=2 * k**-0.5)}

    name = f"{rows} rows, {k} to {n}, stride {dims['X_STRIDE']}" + f", pattern {pattern}" * (pattern > 0)
    return Case(name, LINEAR_SWIGLU, dims, {"rows": rows}, inputs, always(out=(rows, n)))


def _swiglu(rows: int, n: int, k: int, hint: int = 16, x_pad: int = 0) -> Case:
    return _gated({"N": n, "K": k, "X_STRIDE": k + x_pad, "ROWS_HINT": hint}, rows)


def _by_head(dims: Dims, rows: int, pattern: int = 0) -> Case:
    heads, n, k, x_row, x_head = (int(dims[d]) for d in ("HEADS", "N", "K", "X_ROW", "X_HEAD"))

    def inputs(g: torch.Generator) -> Tensors:
        x = torch.full((rows, x_row), float("nan"), dtype=torch.float64)
        used = torch.arange(heads)[:, None] * x_head + torch.arange(k)
        values = normal(g, rows, heads, k)
        x[:, used] = (heavy_ends(values.flatten(0, 1), k).view_as(values) if pattern else values).double()
        return {"x": x, "w": weights(g, heads, n, k, scale=k**-0.5)}

    name = f"{rows} rows, {heads} heads, {k} to {n}" + f", pattern {pattern}" * (pattern > 0)
    name += f", x {x_row} {x_head}, out {dims['OUT_ROW']} {dims['OUT_HEAD']}"
    return Case(name, HEAD_LINEAR, dims, {"rows": rows}, inputs, always(out=(rows, int(dims["OUT_ROW"]))))


def _heads(rows: int, heads: int, n: int, k: int, hint: int = 16, x_pad: int = 0, out_pad: int = 0) -> Case:
    """``x_pad``, ``out_pad``: elements after each head, and as many again after each row."""
    dims = {
        "HEADS": heads,
        "N": n,
        "K": k,
        "X_ROW": heads * (k + x_pad) + x_pad,
        "X_HEAD": k + x_pad,
        "OUT_ROW": heads * (n + out_pad) + out_pad,
        "OUT_HEAD": n + out_pad,
        "ROWS_HINT": hint,
    }
    return _by_head(dims, rows)


MAKERS: dict[str, Maker] = {
    **{k.name: by_rows(k, partial(_build_product, k), 4) for k in (LINEAR, LINEAR_FP32)},
    **{k.name: by_rows(k, partial(_parts, k), 3) for k in (SPLIT_K_SUM, SPLIT_K_SUM_FP32)},
    "linear_swiglu": by_rows(LINEAR_SWIGLU, _gated, 2),
    "head_linear": by_rows(HEAD_LINEAR, _by_head, 2),
}

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
