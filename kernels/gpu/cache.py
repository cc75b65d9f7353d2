"""Cache rows from the kv_a projection, and the rotary part of the queries; positions are absolute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu import work_rows
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.gpu.source import cache as source
from dsv2_compile.kernels.ops.rope import latent_rope, rotate
from dsv2_compile.plan.expr import cdiv
from dsv2_compile.targets import Target


def _angles(cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, ROPE / 2] each, zero where the position is negative."""
    known = (positions >= 0)[:, None]
    at = positions.long().clamp(min=0)
    return cos[at] * known, sin[at] * known


def _latent_constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    blocks = {f"{name}_BLOCK": next_power_of_2(int(dims[name])) for name in ("LATENT", "ROPE")}
    return {**dims, **blocks}


def _latent_grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (sizes["rows"],)


def _latent_default(dims: Dims, target: Target) -> Config:
    return {"num_warps": 2, "num_stages": 1}


def _latent_reference(
    dims: Dims,
    sizes: Mapping[str, int],
    kv: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
) -> dict[str, Any]:
    new = kv[:, : int(dims["LATENT"]) + int(dims["ROPE"])]
    rows = latent_rope(new, weight, *_angles(cos, sin, positions), float(dims["EPS"]))
    used = slots >= 0
    return {"cache": cache.index_put((slots[used].long(),), rows[used])}


def _latent_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    latent, rope, rows = int(dims["LATENT"]), int(dims["ROPE"]), sizes["rows"]
    return Cost(rows * (4 * (latent + rope) + 4 * rope + 8) + 2 * latent, rows * (4 * latent + 3 * rope))


LATENT_CACHE = register(
    Kernel(
        name="latent_cache",
        fn=source.latent_cache,
        args={
            "kv": "*T",
            "weight": "*T",
            "cos": "*fp32",
            "sin": "*fp32",
            "positions": "*i32",
            "slots": "*i32",
            "cache": "*T",
            "rows": "i32",
        },
        outputs=("cache",),
        constants=_latent_constants,
        grid=_latent_grid,
        space={"num_warps": (1, 2, 4, 8), "num_stages": (1,)},
        default=_latent_default,
        reference=_latent_reference,
        cost=_latent_cost,
        work=work_rows.latent_cache,
    )
)
"""cache[slots[r]] = RMSNorm(latent part of kv row r) * weight, then its rotated key. kv [rows, KV_STRIDE], the first
LATENT + ROPE values of a row; weight [LATENT]; cos and sin [positions, ROPE / 2]; cache [slots, LATENT + ROPE],
in place. Padding: a row with a negative slot writes nothing, a negative position rotates to 0. No two rows may
have the same slot. dims: LATENT, ROPE (even), KV_STRIDE, EPS."""


def _query_constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {**dims, "BLOCK_H": config["BLOCK_H"], "ROPE_BLOCK": next_power_of_2(int(dims["ROPE"]))}


def _query_grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (sizes["rows"], cdiv(int(dims["HEADS"]), config["BLOCK_H"]))


def _query_default(dims: Dims, target: Target) -> Config:
    return {"BLOCK_H": min(32, next_power_of_2(int(dims["HEADS"]))), "num_warps": 4, "num_stages": 1}


def _query_reference(
    dims: Dims,
    sizes: Mapping[str, int],
    q: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
) -> dict[str, Any]:
    heads, nope, rope = (int(dims[name]) for name in ("HEADS", "NOPE", "ROPE"))
    value = q[:, : heads * (nope + rope)].unflatten(1, (heads, nope + rope))[..., nope:]
    c, s = (t[:, None] for t in _angles(cos, sin, positions))
    out = torch.full((sizes["rows"], int(dims["OUT_ROW"])), float("nan"), dtype=q.dtype)
    head = torch.arange(heads)[:, None] * int(dims["OUT_HEAD"])
    out[:, head + int(dims["OUT_OFFSET"]) + torch.arange(rope)] = rotate(value, c, s)
    return {"out": out}


def _query_cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    rows, values = sizes["rows"], int(dims["HEADS"]) * int(dims["ROPE"])
    return Cost(rows * (4 * values + 4 * int(dims["ROPE"]) + 4), 3 * rows * values)


ROPE_QUERY = register(
    Kernel(
        name="rope_query",
        fn=source.rope_query,
        args={"q": "*T", "cos": "*fp32", "sin": "*fp32", "positions": "*i32", "out": "*T", "rows": "i32"},
        outputs=("out",),
        constants=_query_constants,
        grid=_query_grid,
        space={"BLOCK_H": (4, 8, 16, 32, 64, 128), "num_warps": (1, 2, 4, 8), "num_stages": (1,)},
        default=_query_default,
        reference=_query_reference,
        cost=_query_cost,
        work=work_rows.rope_query,
    )
)
"""out[r, h * OUT_HEAD + OUT_OFFSET + j] = the rotated value j of head h, the last ROPE of its NOPE + ROPE values; no
other element of out is written. q [rows, Q_ROW], heads adjacent; out [rows, OUT_ROW]; cos, sin and negative positions
as in `LATENT_CACHE`. In place with out = q, OUT_ROW = Q_ROW, OUT_HEAD = NOPE + ROPE, OUT_OFFSET = NOPE.
dims: HEADS, NOPE, ROPE (even), Q_ROW, OUT_ROW, OUT_HEAD, OUT_OFFSET (strides in elements)."""
