"""Norms, rotary embedding, SwiGLU and the per-head linear."""

from __future__ import annotations

from typing import Any

import torch

from dsv2_compile.backends.onnxruntime.builder import ORT, Builder, Value
from dsv2_compile.backends.onnxruntime.rules_aten import Rule
from dsv2_compile.program import TensorSpec

_DSV2 = torch.ops.dsv2


def norm(b: Builder, x: str, weight: str, eps: float) -> str:
    return b.emit("RMSNormalization", x, weight, epsilon=eps, axis=-1)


def rms_norm(b: Builder, out: TensorSpec, x: Value, weight: Value, eps: float) -> str:
    return norm(b, x.name, weight.name, eps)


def add_rms_norm(
    b: Builder, out: tuple[TensorSpec, ...], x: Value, residual: Value, weight: Value, eps: float
) -> tuple[str, ...]:
    total = b.emit("Add", residual.name, x.name)
    return norm(b, total, weight.name, eps), total


def add_rms_norm_ort(
    b: Builder, out: tuple[TensorSpec, ...], x: Value, residual: Value, weight: Value, eps: float
) -> tuple[str, ...]:
    normed, total = b.name("normed"), b.name("sum")
    inputs = [residual.name, x.name, weight.name]
    b.add("SkipSimplifiedLayerNormalization", inputs, [normed, "", "", total], domain=ORT, epsilon=eps)
    return normed, total


def rotate(b: Builder, x: str, heads: int, cos: Value, sin: Value) -> str:
    """x [B, S, heads * R], cos and sin [B, S, R / 2]: interleaved pairs turned by the angle of their token."""
    return b.emit("RotaryEmbedding", x, cos.name, sin.name, interleaved=1, num_heads=heads)


def rope(b: Builder, out: TensorSpec, q: Value, cos: Value, sin: Value, nope: int) -> str:
    batch, tokens, heads, width = q.shape
    kept, turned = b.split(q.name, (nope, width - nope))
    flat = (batch, tokens, heads * (width - nope))
    turned = rotate(b, b.reshape(turned, q.shape, flat), heads, cos, sin)
    turned = b.reshape(turned, flat, (batch, tokens, heads, width - nope))
    return b.emit("Concat", kept, turned, axis=-1)


def latent_rope(b: Builder, out: TensorSpec, kv: Value, weight: Value, cos: Value, sin: Value, eps: float) -> str:
    latent = weight.shape[0]
    low, key = b.split(kv.name, (latent, kv.shape[-1] - latent))
    return b.emit("Concat", norm(b, low, weight.name, eps), rotate(b, key, 1, cos, sin), axis=-1)


def swiglu_of(b: Builder, gate_up: str, half: int) -> str:
    gate, up = b.split(gate_up, (half, half))
    return b.emit("Mul", b.emit("Mul", gate, b.emit("Sigmoid", gate)), up)


def swiglu(b: Builder, out: TensorSpec, gate_up: Value) -> str:
    return swiglu_of(b, gate_up.name, out.shape[-1])


def head_linear(b: Builder, out: TensorSpec, x: Value, w: Value) -> str:
    """x [B, S, H, K], w [H, N, K]: one batched product over H, all tokens of a head together."""
    heads, _, k = w.shape
    per_head = b.emit("Transpose", b.reshape(x.name, x.shape, (-1, heads, k)), perm=[1, 0, 2])
    product = b.matmul_t(per_head, w.name, 3)
    return b.reshape(b.emit("Transpose", product, perm=[1, 0, 2]), (), out.shape)


RULES: dict[Any, Rule] = {
    _DSV2.rms_norm.default: rms_norm,
    _DSV2.add_rms_norm.default: add_rms_norm,
    _DSV2.rope.default: rope,
    _DSV2.latent_rope.default: latent_rope,
    _DSV2.swiglu.default: swiglu,
    _DSV2.head_linear.default: head_linear,
}
ORT_RULES: dict[Any, Rule] = {_DSV2.add_rms_norm.default: add_rms_norm_ort}
