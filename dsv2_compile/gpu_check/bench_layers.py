"""Part c, matrix products: linear layers and the routed experts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from dsv2_compile.config import ModelConfig
from dsv2_compile.devices.device import Device, Work
from dsv2_compile.gpu_check.options import Row
from dsv2_compile.gpu_check.scale import Scale, Step, copies, shape_of, step
from dsv2_compile.gpu_check.timing import rel_l2, row
from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.dispatch import sort_entries
from dsv2_compile.targets import Target

CHECKED = 4
"""Rows that are compared with fp32."""


def linear_steps(config: ModelConfig, item: Row, target: Target) -> list[Step]:
    """The layer, and the sum of its parts where K is split."""
    shape = shape_of(config, item["layer"], item["rows"], item["rows"])
    first = step(shape.kernel, shape.dims, target)
    split = first.config.get("SPLIT_K", 1)
    if split == 1:
        return [first]
    dims = {"N": shape.dims["N"], "OUT_STRIDE": shape.dims["OUT_STRIDE"], "SPLIT_K": split}
    return [first, step("split_k_sum" + "_fp32" * shape.kernel.endswith("fp32"), dims, target)]


def linear(device: Device, machine: dict[str, Any], s: Scale, item: Row) -> Row:
    config, rows = s.models[item["model"]], item["rows"]
    steps = linear_steps(config, item, device.target)
    first, d = steps[0], {n: int(v) for n, v in steps[0].dims.items()}
    heads, k, n = d.get("HEADS", 1), d["K"], d["N"] * (1 + (first.kernel.name == "linear_swiglu"))
    count = copies(s, 2 * heads * n * k)
    weights = [device.normal(heads, n, k, scale=k**-0.5) for _ in range(count)]
    x = device.normal(rows, d.get("X_ROW") or d["X_STRIDE"])
    kind = torch.float32 if first.kernel.args["out"] == "*fp32" else torch.bfloat16
    out = device.empty(rows, d.get("OUT_ROW") or d.get("OUT_STRIDE") or d["N"], dtype=kind).fill_(float("nan"))
    args: dict[str, torch.Tensor | None] = {"x": x, "out": out}
    if d.get("INDEXED"):
        args["index"] = device.put(torch.arange(rows, dtype=torch.int32))
    if len(steps) == 2:
        parts = first.config["SPLIT_K"]
        args["partial"] = device.empty(parts, rows, d["N"], dtype=torch.float32).fill_(float("nan"))
    device.fence()
    works = [_linear_work(device, steps, rows, {**args, "w": w}) for w in weights]
    works[-1]()
    device.fence()
    inputs = x.as_strided((rows, heads, k), (x.shape[1], d.get("X_HEAD", k), 1)).transpose(0, 1)
    actual = out.as_strided((rows, heads, d["N"]), (out.shape[1], d.get("OUT_HEAD", d["N"]), 1))[:CHECKED]
    expected = _torch_linear(inputs[:, :CHECKED].float(), weights[-1].float(), n != d["N"]).transpose(0, 1)
    error = rel_l2(actual, expected), first.kernel.rounded("out") or 1

    def torch_works() -> tuple[str, list[Work]]:
        mine = inputs if heads > 1 else inputs.contiguous()
        return "bmm" if heads > 1 else "matmul" + ", silu, mul" * (n != d["N"]), [
            lambda w=w: _torch_linear(mine, w, n != d["N"])  # type: ignore[misc]
            for w in weights
        ]

    cost = first.kernel.cost(first.dims, {"rows": rows})
    return row(device, machine, s, works, cost, steps, error, torch_works)


def _linear_work(device: Device, steps: list[Step], rows: int, args: Mapping[str, torch.Tensor | None]) -> Work:
    """``out`` of the first of two steps is null: the second writes it."""
    bound = [{**args, "out": None} if len(steps) == 2 and i == 0 else args for i in range(len(steps))]
    calls = [
        device.call(x.kernel, x.dims, x.config, "bf16", {"rows": rows}, a) for x, a in zip(steps, bound, strict=True)
    ]
    return lambda: [call() for call in calls]


def _torch_linear(x: torch.Tensor, w: torch.Tensor, gated: bool) -> torch.Tensor:
    """x [heads, rows, K], w [heads, N, K]."""
    y = F.linear(x[0], w[0])[None] if len(w) == 1 else torch.bmm(x, w.transpose(1, 2))
    if not gated:
        return y
    gate, up = y.chunk(2, -1)
    return F.silu(gate) * up


def expert_steps(config: ModelConfig, item: Row, target: Target) -> list[Step]:
    found = [shape_of(config, n, item["rows"]) for n in ("experts, up", "experts, down", "sum of experts")]
    return [step(s.kernel, s.dims, target) for s in found]


def route(rows: int, experts: int, top_k: int, routing: str) -> torch.Tensor:
    """ids [rows, top_k]. ``zipf``: the j-th expert of a random order is drawn in proportion to 1 / j."""
    keys = -torch.rand(rows, experts).log()  # exponential: the smallest of key / weight are a draw by weight
    if routing == "zipf":
        keys = keys * (torch.randperm(experts) + 1)
    return keys.topk(top_k, -1, largest=False).indices


def experts(device: Device, machine: dict[str, Any], s: Scale, item: Row) -> Row:
    config, rows = s.models[item["model"]], item["rows"]
    steps = expert_steps(config, item, device.target)
    total, top_k = int(config.n_routed_experts), config.num_experts_per_tok
    hidden, inter, entries = config.hidden_size, config.moe_intermediate_size, rows * config.num_experts_per_tok
    matrix = 2 * 3 * inter * hidden
    count = copies(s, min(entries, total) * matrix)
    w_up = device.normal(total, 2 * inter, hidden, scale=2 * hidden**-0.5)
    w_down = device.normal(total, hidden, inter, scale=inter**-0.5)
    x, shared, scores = device.normal(rows, hidden), device.normal(rows, hidden), torch.rand(rows, top_k)
    middle, parts, out = device.empty(entries, inter), device.empty(entries, hidden), device.empty(rows, hidden)
    weights = device.put(scores)
    routes = [route(rows, total, top_k, item["routing"]) for _ in range(count)]
    sorted_ = [sort_entries(ids, total) for ids in routes]
    order = [(device.put(offsets), device.put(order)) for offsets, order in sorted_]
    for t in (middle, parts, out):
        t.fill_(float("nan"))
    device.fence()
    up, down, join = steps

    def work(offsets: torch.Tensor, order: torch.Tensor) -> Work:
        own = {"offsets": offsets, "order": order, "weights": weights}
        bound = (
            (up, {**own, "x": x, "w": w_up, "out": middle}),
            (down, {**own, "x": middle, "w": w_down, "out": parts}),
            (join, {"parts": parts, "shared": shared, "out": out}),
        )
        calls = [device.call(p.kernel, p.dims, p.config, "bf16", {"rows": rows}, a) for p, a in bound]
        return lambda: [call() for call in calls]

    works = [work(*o) for o in order]
    works[-1]()
    device.fence()
    expected = torch.stack(
        [_one(x[r], shared[r], routes[-1][r], scores[r], w_up, w_down) for r in range(min(rows, CHECKED))]
    )
    error = rel_l2(out[:CHECKED], expected), 3
    hit = sum(len(ids.unique()) for ids in routes) / count
    costs = [p.kernel.cost(p.dims, {"rows": rows}) for p in steps]
    uniform = total * (1 - (1 - top_k / total) ** rows)
    cost = Cost(sum(c.bytes for c in costs) + round((hit - uniform) * matrix), sum(c.flops for c in costs))

    def torch_works() -> tuple[str, list[Work]]:
        name, product = _grouped()
        return f"{name}, silu, mul, {name}, sum", [
            lambda o=o: _torch_experts(product, x, shared, weights, o, w_up, w_down)  # type: ignore[misc]
            for o in order
        ]

    return {**row(device, machine, s, works, cost, steps, error, torch_works), "experts_hit": round(hit, 1)}


def _one(
    x: torch.Tensor,
    shared: torch.Tensor,
    ids: torch.Tensor,
    scores: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    """One row in fp32."""
    out = shared.float()
    for e, score in zip(ids.tolist(), scores.tolist(), strict=True):
        gate, up = (w_up[e].float() @ x.float()).chunk(2)
        out = out + score * (w_down[e].float() @ (F.silu(gate) * up))
    return out


def _grouped() -> tuple[str, Any]:
    """torch's grouped product, under the name that this version has it."""
    for place, name in ((F, "grouped_mm"), (torch, "_grouped_mm")):
        if hasattr(place, name):
            return name, getattr(place, name)
    return "loop over experts", _loop


def _loop(x: torch.Tensor, w: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    bounds = [0, *offs.tolist()]
    return torch.cat([x[a:b] @ w[e] for e, (a, b) in enumerate(pairwise(bounds)) if b > a])


def _torch_experts(
    product: Any,
    x: torch.Tensor,
    shared: torch.Tensor,
    weights: torch.Tensor,
    routed: tuple[torch.Tensor, torch.Tensor],
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    (offsets, order), top_k = routed, weights.shape[1]
    gate, up = product(x[order // top_k], w_up.transpose(1, 2), offs=offsets[1:]).chunk(2, -1)
    y = product(F.silu(gate) * up, w_down.transpose(1, 2), offs=offsets[1:])
    y = torch.empty_like(y).index_copy_(0, order.long(), y * weights.flatten()[order, None].to(y.dtype))
    return y.view(len(x), top_k, -1).sum(1) + shared
