"""Part c, attention: absorbed decode over the paged cache, and expanded prefill."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from dsv2_compile.config import ModelConfig
from dsv2_compile.devices.device import Device, Work
from dsv2_compile.gpu_check.options import Row
from dsv2_compile.gpu_check.scale import Scale, Step, copies, shape_of, step
from dsv2_compile.gpu_check.timing import rel_l2, row
from dsv2_compile.kernels.gpu.mla_paged import parts_for
from dsv2_compile.kernels.gpu.mla_split import FIELDS, partial_rows
from dsv2_compile.kernels.gpu.shapes import PAGE
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.targets import Target

CHECKED = 2
"""Rows that are compared with fp32."""


def decode_steps(config: ModelConfig, item: Row, target: Target) -> list[Step]:
    """Division, attention, merge; the division serves all layers of a step."""
    dims = shape_of(config, "attention, absorbed, decode", item["batch"]).dims
    parts = min(parts_for(dims, target), item["batch"] * int(dims["MAX_PAGES"]))
    names = ("split of a step", "attention, absorbed, decode", "merge of parts")
    found = [shape_of(config, n, item["batch"], parts=parts) for n in names]
    return [step(s.kernel, s.dims, target) for s in found]


def decode(device: Device, machine: dict[str, Any], s: Scale, item: Row) -> Row:
    config, batch, context = s.models[item["model"]], item["batch"], item["context"]
    steps = decode_steps(config, item, device.target)
    split, attend, merge = steps
    dims, parts = attend.dims, int(attend.dims["PARTS"])
    heads, latent, width = config.num_attention_heads, config.kv_lora_rank, config.cache_dim
    pages, sizes = -(-context // PAGE), {"rows": batch, "context": batch * context}
    count = copies(s, batch * pages * PAGE * width * 2)
    cache = device.normal(count * batch * pages * PAGE, width)
    q = device.normal(batch, heads, width)
    order = torch.randperm(count * batch * pages).view(count, batch, pages)
    tables = []
    for mine in order:
        table = torch.zeros(batch, int(dims["MAX_PAGES"]), dtype=torch.int32)
        table[:, :pages] = mine
        tables.append(device.put(table))
    slots = evaluate(partial_rows(batch, parts), {})
    args = {
        "q": q,
        "cache": cache,
        "positions": device.put(torch.full((batch,), context - 1, dtype=torch.int32)),
        "sequence": device.put(torch.arange(batch, dtype=torch.int32)),
        "parts": device.empty(parts + 1, FIELDS, dtype=torch.int32),
        "partial": device.empty(slots, heads, latent, dtype=torch.float32),
        "lse": device.empty(slots, heads, dtype=torch.float32),
        "out": device.empty(batch, heads, latent).fill_(float("nan")),
    }
    device.fence()
    divide = device.call(split.kernel, split.dims, split.config, "bf16", sizes, args)
    join = device.call(merge.kernel, merge.dims, merge.config, "bf16", sizes, args)
    calls = [device.call(attend.kernel, dims, attend.config, "bf16", sizes, {**args, "page_table": t}) for t in tables]
    for work in (divide, calls[-1], join):
        work()
    device.fence()
    chosen = sorted({0, batch - 1})[:CHECKED]
    expected = torch.stack([_one(q[b], cache, order[-1, b], context, latent, dims["SCALE"]) for b in chosen])
    error = rel_l2(args["out"][chosen], expected)

    def torch_works() -> tuple[str, list[Work]]:
        """The same bytes as if pages lay in order."""
        keys = cache.view(count, batch, pages * PAGE, width)[:, :, :context]
        return "matmul, softmax, matmul on a contiguous cache", [
            lambda k=k: _torch_decode(q, k, latent, dims["SCALE"])  # type: ignore[misc]
            for k in keys
        ]

    works = [lambda c=c: (c(), join()) for c in calls]  # type: ignore[misc]
    found = row(device, machine, s, works, attend.kernel.cost(dims, sizes), steps, (error, 2), torch_works)
    return {**found, "split_ms": sorted(device.times([divide], 0.05, 20))[1], "parts": parts}


def _one(
    q: torch.Tensor, cache: torch.Tensor, pages: torch.Tensor, context: int, latent: int, scale: float
) -> torch.Tensor:
    """One row in fp32."""
    keys = cache.view(-1, PAGE, cache.shape[1])[pages.to(cache.device)].flatten(0, 1)[:context].float()
    return ((q.float() @ keys.T) * scale).softmax(-1) @ keys[:, :latent]


def _torch_decode(q: torch.Tensor, keys: torch.Tensor, latent: int, scale: float) -> torch.Tensor:
    scores = torch.bmm(q, keys.transpose(1, 2)) * scale
    return torch.bmm(scores.softmax(-1, dtype=torch.float32).to(q.dtype), keys[..., :latent])


def prefill_steps(config: ModelConfig, item: Row, target: Target) -> list[Step]:
    rows = item["batch"] * item["context"]
    return [step("mla_prefill", shape_of(config, "attention, expanded", rows, item["batch"]).dims, target)]


def prefill(device: Device, machine: dict[str, Any], s: Scale, item: Row) -> Row:
    config, batch, tokens = s.models[item["model"]], item["batch"], item["context"]
    steps = prefill_steps(config, item, device.target)
    (attend,), rows = steps, batch * tokens
    dims, heads = attend.dims, config.num_attention_heads
    nope, rope, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    starts = device.put(torch.arange(0, rows + 1, tokens, dtype=torch.int32))
    q, kv = device.normal(rows, int(dims["Q_ROW"])), device.normal(rows, heads * (nope + v))
    cache = device.normal(rows, config.cache_dim)
    out = device.empty(rows, heads * v).fill_(float("nan"))
    args = {"q": q, "kv": kv, "cache": cache, "slots": device.put(torch.arange(rows, dtype=torch.int32))}
    args |= {"query_start": starts, "context_start": starts, "out": out}
    sizes = {"rows": rows, "batch": batch, "context": rows}
    device.fence()
    work = device.call(attend.kernel, dims, attend.config, "bf16", sizes, args)
    work()
    device.fence()
    queries = q[:, : heads * (nope + rope)].view(batch, tokens, heads, -1).transpose(1, 2)
    per_head = kv.view(batch, tokens, heads, nope + v).transpose(1, 2)
    shared = cache[:, -rope:].view(batch, 1, tokens, rope).expand(-1, heads, -1, -1)
    keys, values = torch.cat((per_head[..., :nope], shared), -1), per_head[..., nope:].contiguous()
    scores = (queries[-1, :, -1:].float() @ keys[-1].float().transpose(1, 2)) * dims["SCALE"]
    expected = scores.softmax(-1) @ values[-1].float()
    error = rel_l2(out.view(batch, tokens, heads, v)[-1, -1], expected[:, 0])

    def torch_works() -> tuple[str, list[Work]]:
        mine, scale = queries.contiguous(), float(dims["SCALE"])
        return "scaled_dot_product_attention", [
            lambda: F.scaled_dot_product_attention(mine, keys, values, is_causal=True, scale=scale)
        ]

    return row(device, machine, s, [work], attend.kernel.cost(dims, sizes), steps, (error, 2), torch_works)
