"""MLA attention over the caller's cache view and the new rows. The cache is read where it lies, never copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dsv2_compile.backends.onnxruntime.builder import Builder, Value
from dsv2_compile.backends.onnxruntime.rules_aten import Rule, linear
from dsv2_compile.program import Dim, TensorSpec

_DSV2 = torch.ops.dsv2


def hidden(b: Builder, past: Value, tokens: Dim, context: Dim) -> str:
    """float32 [B, S, P + S], once per graph: 0 where a query sees a position, -inf where not."""
    return b.once(("hidden", past.name, tokens, context), lambda: _hidden(b, past, tokens, context))


def _hidden(b: Builder, past: Value, tokens: Dim, context: Dim) -> str:
    zero, one = b.scalar(0), b.scalar(1)
    seen, unseen = b.constant(0.0, np.float32), b.constant(-np.inf, np.float32)
    steps = b.emit("Range", zero, b.scalar(tokens), one)
    cached = b.emit("Less", b.emit("Range", zero, b.scalar(context), one), b.unsqueeze(past.name, 1))
    causal = b.emit("LessOrEqual", steps, b.unsqueeze(steps, 1))
    old = b.unsqueeze(b.emit("Where", cached, seen, unseen), 1)
    new = b.emit("Where", causal, seen, unseen)
    batch = past.shape[0]
    old = b.emit("Expand", old, b.sizes((batch, tokens, context)))
    new = b.emit("Expand", new, b.sizes((batch, tokens, tokens)))
    return b.emit("Concat", old, new, axis=-1)


def masked_softmax(b: Builder, scores: str, past: Value, tokens: Dim, context: Dim, axis: int) -> str:
    """scores, four dims, ``axis`` the one of the heads: softmax of the visible ones over the last dim."""
    mask = hidden(b, past, tokens, context)
    mask = b.once(("hidden", mask, axis), lambda: b.unsqueeze(mask, axis))
    return b.emit("Softmax", b.emit("Add", scores, mask), axis=-1)


def mla_absorbed(
    b: Builder, out: TensorSpec, q: Value, cache: Value, rows: Value, past: Value, scale: float, latent: int
) -> str:
    """The queries of all heads are the rows of one matrix; products with all C columns, the result cut to L:
    cutting the cache first would copy it."""
    batch, tokens, heads, width = q.shape
    context = cache.shape[1]
    total = context + tokens
    flat = b.reshape(q.name, q.shape, (batch, tokens * heads, width))
    parts = [b.matmul_t(flat, kv.name, 3, alpha=scale) for kv in (cache, rows)]
    scores = b.emit("Concat", *parts, axis=-1)
    scores = b.reshape(scores, (batch, tokens * heads, total), (batch, tokens, heads, total))
    p = masked_softmax(b, scores, past, tokens, context, 2)
    p = b.reshape(p, (batch, tokens, heads, total), (batch, tokens * heads, total))
    old, new = b.split(p, (context, tokens))
    both = b.emit("Add", b.emit("MatMul", old, cache.name), b.emit("MatMul", new, rows.name))
    return b.reshape(b.slice(both, 0, latent, -1), (batch, tokens * heads, latent), out.shape)


def mla_expanded(
    b: Builder,
    out: TensorSpec,
    q: Value,
    cache: Value,
    rows: Value,
    w_kv: Value,
    past: Value,
    scale: float,
    v_dim: int,
) -> str:
    """K and V of every visible position are made per call: for many queries at once."""
    batch, tokens, heads, _ = q.shape
    context, latent = cache.shape[1], w_kv.shape[1]
    nope, turned = w_kv.shape[0] // heads - v_dim, cache.shape[2] - latent
    total = context + tokens
    low, key = b.split(b.emit("Concat", cache.name, rows.name, axis=1), (latent, turned))
    wide = TensorSpec((batch, total, w_kv.shape[0]), q.spec.dtype)
    up = linear(b, wide, Value(low, TensorSpec((batch, total, latent), q.spec.dtype)), w_kv)
    up = b.reshape(up, wide.shape, (batch, total, heads, nope + v_dim))
    k, v = b.split(b.emit("Transpose", up, perm=[0, 2, 1, 3]), (nope, v_dim))
    q_nope, q_pe = b.split(b.emit("Transpose", q.name, perm=[0, 2, 1, 3]), (nope, turned))
    q_pe = b.reshape(q_pe, (batch, heads, tokens, turned), (batch, heads * tokens, turned))
    pe = b.matmul_t(q_pe, key, 3, alpha=scale)
    pe = b.reshape(pe, (batch, heads * tokens, total), (batch, heads, tokens, total))
    scores = b.emit("Add", b.matmul_t(q_nope, k, 4, alpha=scale), pe)
    p = masked_softmax(b, scores, past, tokens, context, 1)
    return b.emit("Transpose", b.emit("MatMul", p, v), perm=[0, 2, 1, 3])


RULES: dict[Any, Rule] = {_DSV2.mla_absorbed.default: mla_absorbed, _DSV2.mla_expanded.default: mla_expanded}
