"""Rotation, cache writes, and MLA over the paged cache in its expanded and its absorbed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsv2_compile.backends.cuda.draft import BATCH, CONTEXT, ROWS, View, kernel
from dsv2_compile.backends.cuda.rules_dense import linear
from dsv2_compile.backends.cuda.values import (
    Deferred,
    Lowering,
    Rotated,
    Rule,
    Skipped,
    args_of,
    layer_of,
    unsupported,
)
from dsv2_compile.kernels.gpu.mla_paged import parts_for
from dsv2_compile.kernels.gpu.mla_split import FIELDS, partial_rows
from dsv2_compile.kernels.gpu.shapes import PAGE
from dsv2_compile.plan.plan import Pointer

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2
ROW_OVERHEAD = 2
"""What beginning a row of attention costs, in pages."""


def _rope(low: Lowering, node: fx.Node) -> Rotated:
    q, nope = low.view(args_of(node)[0]), int(args_of(node)[3])
    heads, width = node.meta["spec"].shape[2:]
    if len(args_of(node)[0].users) != 1:
        raise unsupported(node, "queries that are also used unrotated")
    return Rotated(q, int(heads), nope, int(width) - nope)


def _rotate(low: Lowering, value: Rotated, into: View, offset: int) -> None:
    """Write the rotated part of every head of ``value`` to ``offset`` in the heads of ``into``."""
    dims = {
        "HEADS": value.heads,
        "NOPE": value.nope,
        "ROPE": value.rope,
        "Q_ROW": value.q.stride,
        "OUT_ROW": into.stride,
        "OUT_HEAD": into.width // value.heads,
        "OUT_OFFSET": offset,
    }
    args = {"q": value.q, "out": into, "cos": low.weight("rope.cos"), "sin": low.weight("rope.sin")}
    positions = low.input("positions")
    low.draft.launch(kernel("rope_query"), dims, {"rows": ROWS}, "RoPE of the queries", positions=positions, **args)


def _in_place(low: Lowering, value: Rotated) -> View:
    _rotate(low, value, value.q, value.nope)
    return value.q


def _latent_rope(low: Lowering, node: fx.Node) -> Skipped:
    kv, weight, layer = low.view(args_of(node)[0]), low.view(args_of(node)[1]), layer_of(node)
    dims: dict[str, Any] = {
        "LATENT": weight.width,
        "ROPE": kv.width - weight.width,
        "KV_STRIDE": kv.stride,
        "EPS": float(args_of(node)[4]),
    }
    low.draft.launch(
        kernel("latent_cache"),
        dims,
        {"rows": ROWS},
        f"latent norm, RoPE and cache write, layer {layer}",
        kv=kv,
        weight=weight,
        cos=low.weight("rope.cos"),
        sin=low.weight("rope.sin"),
        positions=low.input("positions"),
        slots=low.input("slots"),
        cache=low.layer_cache(layer),
    )
    return Skipped(f"rows.{layer}")


def _layer(low: Lowering, node: fx.Node, rows: Any) -> int:
    """Of attention, by the new rows it reads."""
    value = low.values[rows]
    if not isinstance(value, Skipped) or not value.what.startswith("rows."):
        raise unsupported(node, "attention over rows that are not the cache's")
    return int(value.what.removeprefix("rows."))


def _expanded(low: Lowering, node: fx.Node) -> View:
    q, _, rows, w_kv, _, scale, v_dim = args_of(node)
    value, w, layer = low.values[q], low.view(w_kv), _layer(low, node, rows)
    if low.phase != "prefill" or not isinstance(value, Rotated):
        raise unsupported(node, f"expanded attention in {low.phase}")
    c = low.program.config
    cache, slots = low.layer_cache(layer), low.input("context_slots")
    kv = low.draft.temporary("kv", CONTEXT, w.height)
    linear(low, cache, w, kv, CONTEXT, index=slots, x_stride=c.cache_dim)
    dims: dict[str, Any] = {
        "HEADS": value.heads,
        "NOPE": value.nope,
        "ROPE": value.rope,
        "V": v_dim,
        "LATENT": w.width,
        "Q_ROW": value.q.stride,
        "SCALE": float(scale),
        "MAX_BATCH": low.draft.limits["batch"],
    }
    out = low.draft.temporary("attention", ROWS, value.heads * int(v_dim))
    low.draft.launch(
        kernel("mla_prefill"),
        dims,
        {"rows": ROWS, "batch": BATCH},
        f"attention, expanded, layer {layer}",
        q=_in_place(low, value),
        kv=kv,
        cache=cache,
        slots=slots,
        query_start=low.input("query_start"),
        context_start=low.input("context_start"),
        out=out,
    )
    return out


def _head_linear(low: Lowering, node: fx.Node) -> Any:
    value, w = low.values[args_of(node)[0]], low.view(args_of(node)[1])
    heads, n, k = low.program.weights[w.buffer].shape
    if isinstance(value, Rotated):
        source, head = value.q, value.nope + value.rope
    else:
        source, head = low.view(args_of(node)[0]), low.view(args_of(node)[0]).width // heads

    def make(into: View) -> None:
        dims = {
            "HEADS": heads,
            "N": n,
            "K": k,
            "X_ROW": source.stride,
            "X_HEAD": head,
            "OUT_ROW": into.stride,
            "OUT_HEAD": into.width // heads,
            "ROWS_HINT": low.hint(ROWS),
        }
        low.draft.launch(
            kernel("head_linear"), dims, {"rows": ROWS}, f"linear by head, {w.buffer}", x=source, w=w, out=into
        )

    if isinstance(value, Rotated):
        return Deferred(heads * n, make)
    out = low.draft.temporary("heads", ROWS, heads * n)
    make(out)
    return out


def _cat(low: Lowering, node: fx.Node) -> View:
    """The absorbed queries: per head the latent part, then the rotated one."""
    parts = [low.values[p] for p in args_of(node)[0]]
    latent, value = parts if len(parts) == 2 else (None, None)
    if not isinstance(latent, Deferred) or not isinstance(value, Rotated):
        raise unsupported(node, "a concatenation that is not of absorbed queries")
    out = low.draft.temporary("queries", ROWS, latent.width + value.heads * value.rope)
    latent.make(out)
    _rotate(low, value, out, latent.width // value.heads)
    return out


def _absorbed(low: Lowering, node: fx.Node) -> View:
    q, _, rows, _, scale, _ = args_of(node)
    value, layer = low.values[q], _layer(low, node, rows)
    view = _in_place(low, value) if isinstance(value, Rotated) else low.view(q)
    c = low.program.config
    dims: dict[str, Any] = {
        "HEADS": c.num_attention_heads,
        "LATENT": c.kv_lora_rank,
        "ROPE": c.qk_rope_head_dim,
        "PAGE": PAGE,
        "MAX_PAGES": low.pages,
        "SCALE": float(scale),
    }
    out = low.draft.temporary("attention", ROWS, c.num_attention_heads * c.kv_lora_rank)
    if low.phase == "decode":
        _decode(low, view, layer, dims, out)
    else:
        _extend(low, view, layer, dims, out)
    return out


def _extend(low: Lowering, q: View, layer: int, dims: dict[str, Any], out: View) -> None:
    low.draft.launch(
        kernel("mla_extend"),
        dims | {"MAX_BATCH": low.draft.limits["batch"]},
        {"rows": ROWS, "batch": BATCH},
        f"attention over pages, layer {layer}",
        q=q,
        cache=low.layer_cache(layer),
        page_table=low.input("page_table"),
        query_start=low.input("query_start"),
        positions=low.input("positions"),
        out=out,
    )


def _decode(low: Lowering, q: View, layer: int, dims: dict[str, Any], out: View) -> None:
    """In parts of equal work, divided once for all layers; rows that were cut are put together afterwards."""
    count = min(parts_for(dims, low.draft.target), low.draft.limits["rows"] * low.pages)
    dims, sizes, positions = dims | {"PARTS": count}, {"rows": ROWS}, low.input("positions")
    if "parts" not in low.shared:
        low.shared["parts"] = low.draft.temporary("parts", count + 1, FIELDS, "i32")
        divided = {"PAGE": PAGE, "PARTS": count, "OVERHEAD": ROW_OVERHEAD}
        what = "division of the attention"
        low.draft.launch(kernel("mla_schedule"), divided, sizes, what, positions=positions, parts=low.shared["parts"])
    slots, heads, latent = partial_rows(ROWS, count), dims["HEADS"], dims["LATENT"]
    pieces: dict[str, View | Pointer | None] = {
        "parts": low.shared["parts"],
        "partial": low.draft.temporary("partial", slots, heads * latent, "fp32"),
        "lse": low.draft.temporary("lse", slots, heads, "fp32"),
        "out": out,
    }
    low.draft.launch(
        kernel("mla_decode"),
        dims,
        sizes,
        f"attention over pages, layer {layer}",
        q=q,
        cache=low.layer_cache(layer),
        page_table=low.input("page_table"),
        positions=positions,
        sequence=low.input("sequence"),
        **pieces,
    )
    merged = {"HEADS": heads, "LATENT": latent, "PARTS": count}
    low.draft.launch(kernel("mla_combine"), merged, sizes, f"attention of rows in parts, layer {layer}", **pieces)


RULES: dict[Any, Rule] = {
    _DSV2.rope.default: _rope,
    _DSV2.latent_rope.default: _latent_rope,
    _DSV2.mla_expanded.default: _expanded,
    _DSV2.mla_absorbed.default: _absorbed,
    _DSV2.head_linear.default: _head_linear,
    _ATEN.cat.default: _cat,
}
