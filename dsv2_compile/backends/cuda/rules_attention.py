"""Rotation, cache writes, and MLA over the paged cache in its expanded and its absorbed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsv2_compile.backends.cuda.draft import BATCH, CONTEXT, ROWS, View, kernel
from dsv2_compile.backends.cuda.rules_dense import linear
from dsv2_compile.backends.cuda.values import PAGE, Deferred, Lowering, Rotated, Rule, Skipped, layer_of, unsupported

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2


def _rope(low: Lowering, node: fx.Node) -> Rotated:
    q, nope = low.view(node.args[0]), int(node.args[3])  # type: ignore[call-overload]
    heads, width = node.meta["spec"].shape[2:]
    if len(node.args[0].users) != 1:  # type: ignore[union-attr]
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
    args = {"q": value.q, "out": into, "cos": _table(low, "cos"), "sin": _table(low, "sin")}
    positions = low.input("positions")
    low.draft.launch(kernel("rope_query"), dims, {"rows": ROWS}, "RoPE of the queries", positions=positions, **args)


def _in_place(low: Lowering, value: Rotated) -> View:
    _rotate(low, value, value.q, value.nope)
    return value.q


def _table(low: Lowering, function: str) -> View:
    name = f"rope.{function}"
    rows, width = low.program.weights[name].shape
    return View(low.draft.buffer(name, "weight", "fp32", rows, width), rows, width, width, "fp32")


def _latent_rope(low: Lowering, node: fx.Node) -> Skipped:
    kv, weight, layer = low.view(node.args[0]), low.view(node.args[1]), layer_of(node)
    dims: dict[str, Any] = {
        "LATENT": weight.width,
        "ROPE": kv.width - weight.width,
        "KV_STRIDE": kv.stride,
        "EPS": float(node.args[4]),  # type: ignore[arg-type]
    }
    low.draft.launch(
        kernel("latent_cache"),
        dims,
        {"rows": ROWS},
        f"latent norm, RoPE and cache write, layer {layer}",
        kv=kv,
        weight=weight,
        cos=_table(low, "cos"),
        sin=_table(low, "sin"),
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
    q, _, rows, w_kv, _, scale, v_dim = node.args
    value, w, layer = low.values[q], low.view(w_kv), _layer(low, node, rows)  # type: ignore[index]
    if low.phase != "prefill" or not isinstance(value, Rotated):
        raise unsupported(node, f"expanded attention in {low.phase}")
    c = low.program.config
    cache, slots = low.layer_cache(layer), low.input("context_slots")
    kv = low.draft.temporary("kv", CONTEXT, int(w.rows))  # type: ignore[arg-type]
    linear(low, cache, w, kv, CONTEXT, index=slots, x_stride=c.cache_dim)
    dims: dict[str, Any] = {
        "HEADS": value.heads,
        "NOPE": value.nope,
        "ROPE": value.rope,
        "V": v_dim,
        "LATENT": w.width,
        "Q_ROW": value.q.stride,
        "SCALE": float(scale),  # type: ignore[arg-type]
        "MAX_BATCH": low.draft.limits["batch"],
    }
    out = low.draft.temporary("attention", ROWS, value.heads * int(v_dim))  # type: ignore[call-overload]
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
    value, w = low.values[node.args[0]], low.view(node.args[1])  # type: ignore[index]
    heads, n, k = low.program.weights[w.buffer].shape
    if isinstance(value, Rotated):
        source, head = value.q, value.nope + value.rope
    else:
        source, head = low.view(node.args[0]), low.view(node.args[0]).width // heads

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
    parts = [low.values[p] for p in node.args[0]]  # type: ignore[union-attr]
    latent, value = parts if len(parts) == 2 else (None, None)
    if not isinstance(latent, Deferred) or not isinstance(value, Rotated):
        raise unsupported(node, "a concatenation that is not of absorbed queries")
    out = low.draft.temporary("queries", ROWS, latent.width + value.heads * value.rope)
    latent.make(out)
    _rotate(low, value, out, latent.width // value.heads)
    return out


def _absorbed(low: Lowering, node: fx.Node) -> View:
    q, _, rows, _, scale, latent = node.args
    value, layer = low.values[q], _layer(low, node, rows)  # type: ignore[index]
    view = _in_place(low, value) if isinstance(value, Rotated) else low.view(q)
    heads, width = node.meta["spec"].shape[2:]
    return attend(low, view, layer, int(heads), int(width), float(scale))  # type: ignore[arg-type]


RULES: dict[Any, Rule] = {
    _DSV2.rope.default: _rope,
    _DSV2.latent_rope.default: _latent_rope,
    _DSV2.mla_expanded.default: _expanded,
    _DSV2.mla_absorbed.default: _absorbed,
    _DSV2.head_linear.default: _head_linear,
    _ATEN.cat.default: _cat,
}
