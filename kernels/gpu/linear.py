"""Linear layers: out = x w^T plain, gathered, split over K, gated by SwiGLU, one per head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register, rows_hint
from dsv2_compile.kernels.gpu.source import linear as source
from dsv2_compile.kernels.gpu.tiles import Product, part_of, tiles
from dsv2_compile.kernels.gpu.work_linear import linear as work_of_linear
from dsv2_compile.kernels.gpu.work_rows import summed
from dsv2_compile.kernels.ops.linear import head_linear, swiglu
from dsv2_compile.plan.expr import Size, cdiv
from dsv2_compile.targets import Target

HINTS = ("ROWS_HINT", "SPLIT_K")
"""Dims that only steer `default`: the expected rows (1 to 16: decode; without it, a long prefill), and SPLIT_K
where it must not choose."""

_SPACE: dict[str, tuple[int, ...]] = {
    "BLOCK_M": (1, 16, 32, 64, 128),
    "BLOCK_N": (4, 8, 16, 32, 64, 128, 256),
    "BLOCK_K": (32, 64, 128, 256, 512, 1024),
    "GROUP_M": (1, 4, 8, 16),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5, 6),
}


def _constants(*knobs: str) -> Callable[[Dims, Config], dict[str, int | float | bool]]:
    def constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
        fixed = {name: value for name, value in dims.items() if name not in HINTS}
        swap = 1 < config["BLOCK_M"] < 64 <= config["BLOCK_N"]
        return {**fixed, **{knob: config[knob] for knob in ("BLOCK_M", "BLOCK_N", "BLOCK_K", *knobs)}, "SWAP": swap}

    return constants


def _split_constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**_constants("GROUP_M", "SPLIT_K")(dims, config), "PART": part_of(int(dims["K"]), config["SPLIT_K"])}


def _tile_count(dims: Dims, config: Config, sizes: Sizes) -> Size:
    return cdiv(sizes["rows"], config["BLOCK_M"]) * cdiv(int(dims["N"]), config["BLOCK_N"])


def _product(dims: Dims) -> Product:
    return Product(rows_hint(dims), int(dims["N"]), int(dims["K"]))


def _without_split(config: Config) -> Config:
    return {knob: value for knob, value in config.items() if knob != "SPLIT_K"}


def _linear_default(dims: Dims, target: Target) -> Config:
    pinned = dims.get("SPLIT_K")
    return tiles(replace(_product(dims), split=None if pinned is None else int(pinned)), target)


def _linear_reference(
    dims: Dims, sizes: Mapping[str, int], x: torch.Tensor, index: torch.Tensor | None, w: torch.Tensor
) -> dict[str, Any]:
    rows, n, k, split = sizes["rows"], int(dims["N"]), int(dims["K"]), int(dims.get("SPLIT_K", 1))
    source = torch.arange(rows) if index is None else index.long()
    value, w = x[source, :k], w.to(x.dtype)
    if split == 1:
        out = torch.full((rows, int(dims["OUT_STRIDE"])), float("nan"), dtype=x.dtype)
        out[:, :n] = torch.nn.functional.linear(value, w)
        return {"out": out, "partial": None}
    part = part_of(k, split)
    slices = [slice(i * part, (i + 1) * part) for i in range(split)]
    partial = torch.stack([torch.nn.functional.linear(value[:, s], w[:, s]) for s in slices])
    return {"out": None, "partial": partial}


def _linear_cost(itemsize: int) -> Callable[[Dims, Mapping[str, int]], Cost]:
    def cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
        rows, n, k = sizes["rows"], int(dims["N"]), int(dims["K"])
        return Cost(2 * (rows + n) * k + itemsize * rows * n, 2 * rows * n * k)

    return cost


def _sum_of_parts(ending: str) -> Callable[[Dims, Config], tuple[str, Dims] | None]:
    def then(dims: Dims, config: Config) -> tuple[str, Dims] | None:
        summed = {"N": dims["N"], "OUT_STRIDE": dims["OUT_STRIDE"], "SPLIT_K": config["SPLIT_K"]}
        return (f"split_k_sum{ending}", summed) if config["SPLIT_K"] > 1 else None

    return then


def _linear(name: str, out: str, itemsize: int) -> Kernel:
    return Kernel(
        name=name,
        fn=source.linear,
        args={"x": "*T", "index": "*i32", "w": "*T", "out": out, "partial": "*fp32", "rows": "i32"},
        outputs=("out", "partial"),
        constants=_split_constants,
        grid=lambda dims, config, sizes: (_tile_count(dims, config, sizes), config["SPLIT_K"]),
        space={**_SPACE, "SPLIT_K": (1, 2, 4, 8, 16)},
        default=_linear_default,
        reference=_linear_reference,
        cost=_linear_cost(itemsize),
        work=work_of_linear(out_bytes=itemsize),
        then=_sum_of_parts(name.removeprefix("linear")),
    )


LINEAR = register(_linear("linear", "*T", 2))
"""out[r] = w x[index[r] if INDEXED else r], rows OUT_STRIDE apart; rows of x X_STRIDE apart, w [N, K].

With SPLIT_K > 1 only partial [SPLIT_K, rows, N] is written, the sums over `tiles.part_of` (K, SPLIT_K) elements of
K each (empty ones are 0), and `SPLIT_K_SUM` with the same SPLIT_K follows; else only out is.
dims: N, K, X_STRIDE, OUT_STRIDE, INDEXED, and `HINTS`."""
LINEAR_FP32 = register(_linear("linear_fp32", "*fp32", 4))
"""`LINEAR` with out in fp32."""


def _sum_reference(dims: Dims, sizes: Mapping[str, int], partial: torch.Tensor) -> dict[str, Any]:
    out = torch.full((sizes["rows"], int(dims["OUT_STRIDE"])), float("nan"), dtype=partial.dtype)
    out[:, : int(dims["N"])] = partial.sum(0)
    return {"out": out}


def _sum_cost(itemsize: int) -> Callable[[Dims, Mapping[str, int]], Cost]:
    def cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
        values, split = sizes["rows"] * int(dims["N"]), int(dims["SPLIT_K"])
        return Cost((4 * split + itemsize) * values, split * values)

    return cost


def _sum(name: str, out: str, itemsize: int) -> Kernel:
    return Kernel(
        name=name,
        fn=source.split_k_sum,
        args={"partial": "*fp32", "out": out, "rows": "i32"},
        outputs=("out",),
        constants=lambda dims, config: {**dims, "BLOCK": config["BLOCK"]},
        grid=lambda dims, config, sizes: (sizes["rows"], cdiv(int(dims["N"]), config["BLOCK"])),
        space={"BLOCK": (128, 256, 512, 1024, 2048), "num_warps": (1, 2, 4), "num_stages": (1,)},
        default=lambda dims, target: {
            "BLOCK": min(512, next_power_of_2(int(dims["N"]))),
            "num_warps": 4,
            "num_stages": 1,
        },
        reference=_sum_reference,
        cost=_sum_cost(itemsize),
        work=summed("BLOCK", lambda dims: int(dims["SPLIT_K"]), 4, itemsize),
    )


SPLIT_K_SUM = register(_sum("split_k_sum", "*T", 2))
"""out = partial [SPLIT_K, rows, N] summed over its first dim, from part 0 on; rows of out OUT_STRIDE apart.
dims: N, OUT_STRIDE, SPLIT_K (that of `LINEAR`'s config)."""
SPLIT_K_SUM_FP32 = register(_sum("split_k_sum_fp32", "*fp32", 4))
"""`SPLIT_K_SUM` with out in fp32."""


def _swiglu_reference(dims: Dims, sizes: Mapping[str, int], x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
    return {"out": swiglu(torch.nn.functional.linear(x[:, : int(dims["K"])], w))}


def _swiglu_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    rows, n, k = sizes["rows"], int(dims["N"]), int(dims["K"])
    return Cost(2 * (rows * k + 2 * n * k + rows * n), rows * n * (4 * k + 3))


LINEAR_SWIGLU = register(
    Kernel(
        name="linear_swiglu",
        fn=source.linear_swiglu,
        args={"x": "*T", "w": "*T", "out": "*T", "rows": "i32"},
        outputs=("out",),
        constants=_constants("GROUP_M"),
        grid=lambda dims, config, sizes: (_tile_count(dims, config, sizes),),
        space=_SPACE,
        default=lambda dims, target: _without_split(tiles(replace(_product(dims), weights=2), target)),
        reference=_swiglu_reference,
        cost=_swiglu_cost,
        work=work_of_linear(weights=2),
    )
)
"""out [rows, N] = silu(w[:N] x) * (w[N:] x), in fp32 up to the one rounding; w [2 N, K], rows of x X_STRIDE apart.
dims: N, K, X_STRIDE, and ROWS_HINT of `HINTS`."""


def _head_grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (_tile_count(dims, config, sizes), int(dims["HEADS"]))


def _head_default(dims: Dims, target: Target) -> Config:
    return _without_split(tiles(replace(_product(dims), batch=int(dims["HEADS"])), target))


def _head_reference(dims: Dims, sizes: Mapping[str, int], x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
    rows = sizes["rows"]
    heads, n, k, x_row, x_head, out_row, out_head = (
        int(dims[d]) for d in ("HEADS", "N", "K", "X_ROW", "X_HEAD", "OUT_ROW", "OUT_HEAD")
    )
    out = torch.full((rows, out_row), float("nan"), dtype=x.dtype)
    value = head_linear(x.as_strided((1, rows, heads, k), (0, x_row, x_head, 1)), w)
    out.as_strided((rows, heads, n), (out_row, out_head, 1)).copy_(value[0])
    return {"out": out}


def _head_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    rows, heads, n, k = sizes["rows"], int(dims["HEADS"]), int(dims["N"]), int(dims["K"])
    return Cost(2 * heads * (rows * k + n * k + rows * n), 2 * rows * heads * n * k)


HEAD_LINEAR = register(
    Kernel(
        name="head_linear",
        fn=source.head_linear,
        args={"x": "*T", "w": "*T", "out": "*T", "rows": "i32"},
        outputs=("out",),
        constants=_constants("GROUP_M"),
        grid=_head_grid,
        space=_SPACE,
        default=_head_default,
        reference=_head_reference,
        cost=_head_cost,
        work=work_of_linear(),
    )
)
"""out[r OUT_ROW + h OUT_HEAD + n] = sum over k of x[r X_ROW + h X_HEAD + k] w[h, n, k]; nothing else of out is
written. w [HEADS, N, K]. dims: HEADS, N, K, X_ROW, X_HEAD, OUT_ROW, OUT_HEAD, and ROWS_HINT of `HINTS`."""
