"""The softmax gate and the routed experts. Only hit experts are read, in both operator sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from dsv2_compile.backends.onnxruntime.builder import ORT, Builder, Value
from dsv2_compile.backends.onnxruntime.rules_aten import Rule, linear
from dsv2_compile.backends.onnxruntime.rules_dense import swiglu_of
from dsv2_compile.errors import ModelError
from dsv2_compile.program import Dim, TensorSpec
from dsv2_compile.weights import Interleave, Stack

_DSV2 = torch.ops.dsv2
NOT_CHOSEN = -1e4
"""Router logit of an expert that was not chosen: below log of every weight."""
LEAST_SHARE = 1e-30
"""Shares below it are raised to it, so that a weight of 0 has a logarithm above NOT_CHOSEN."""


def gate(
    b: Builder,
    out: tuple[TensorSpec, ...],
    x: Value,
    w: Value,
    top_k: int,
    n_group: int,
    topk_group: int,
    scale: float,
    normalize: bool,
) -> tuple[str, ...]:
    """TopK breaks ties by the lower index, as the dialect does."""
    experts = w.shape[0]
    lead = x.shape[:-1]
    logits = linear(b, TensorSpec((*lead, experts), x.spec.dtype), x, w)
    scores = b.emit("Softmax", logits, axis=-1)
    if n_group > 1:
        scores = _limit(b, scores, lead, n_group, experts // n_group, topk_group)
    weights, ids = b.emit_many("TopK", 2, scores, b.constant([top_k]), axis=-1)
    if normalize:
        total = b.emit("ReduceSum", weights, b.constant([-1]))
        return ids, b.emit("Div", weights, b.emit("Add", total, b.constant(1e-20, np.float32)))
    return ids, weights if scale == 1.0 else b.emit("Mul", weights, b.constant(scale, np.float32))


def _limit(b: Builder, scores: str, lead: tuple[Dim, ...], groups: int, members: int, keep: int) -> str:
    """Zero the scores outside the ``keep`` groups with the highest maximum."""
    whole, parts = (*lead, groups * members), (*lead, groups, members)
    grouped = b.reshape(scores, whole, parts)
    best = b.emit("ReduceMax", grouped, b.constant([-1]), keepdims=0)
    _, chosen = b.emit_many("TopK", 2, best, b.constant([keep]), axis=-1)
    zeros = b.emit("Mul", best, b.constant(0.0, np.float32))
    ones = b.emit("Expand", b.constant(1.0, np.float32), b.emit("Shape", chosen))
    kept = b.unsqueeze(b.emit("ScatterElements", zeros, chosen, ones, axis=-1), -1)
    return b.reshape(b.emit("Mul", grouped, kept), parts, whole)


def experts_ort(
    b: Builder, out: TensorSpec, x: Value, ids: Value, weights: Value, w_gate_up: Value, w_down: Value
) -> str:
    """The MoE kernel chooses by router logits and weighs by their softmax over the k chosen.

    softmax_j log(weight_j / sum) = weight_j / sum exactly, so the logarithms at the given ids, times the
    sum afterwards, serve every gate. The kernel wants gate and up rows in turn: another recipe.
    """
    count, top_k = w_gate_up.shape[0], ids.shape[-1]
    total = b.emit("ReduceSum", weights.name, b.constant([-1]))
    least = b.constant(LEAST_SHARE, np.float32)
    share = b.emit("Div", weights.name, b.emit("Max", total, least))
    logits = b.reshape(b.emit("Log", b.emit("Max", share, least)), weights.shape, (-1, top_k))
    flat_ids = b.reshape(ids.name, ids.shape, (-1, top_k))
    rows = b.once(("rows", ids.shape[:-1]), lambda: b.emit("Mul", *map(b.size, ids.shape[:-1])))
    closed = b.once(
        ("closed", ids.shape[:-1], count),
        lambda: b.emit("Expand", b.constant(NOT_CHOSEN, np.float32), b.emit("Concat", rows, b.size(count), axis=0)),
    )
    router = b.emit("ScatterElements", closed, flat_ids, logits, axis=-1)
    routed = b.emit(
        "MoE",
        x.name,
        router,
        _interleaved(b, w_gate_up),
        "",
        w_down.name,
        domain=ORT,
        k=top_k,
        activation_type="swiglu",
        swiglu_fusion=1,
        normalize_routing_weights=1,
    )
    return b.emit("Mul", routed, total)


def _interleaved(b: Builder, w: Value) -> str:
    recipe = b.weights[w.name]
    if not isinstance(recipe, Stack):
        raise ModelError(f"{w.name} is not a stack of experts", "keep one recipe per expert in a Stack")
    name = f"{w.name}.interleaved"
    return b.weight(name, w.spec, Stack(tuple(Interleave(part) for part in recipe.parts))).name


def experts(b: Builder, out: TensorSpec, x: Value, ids: Value, weights: Value, w_gate_up: Value, w_down: Value) -> str:
    """A loop over the distinct hit experts: the rows that chose it, one expert's matrices, a scattered sum."""
    hidden, top_k, width = x.shape[-1], ids.shape[-1], w_down.shape[-1]
    flat = b.reshape(x.name, x.shape, (-1, hidden))
    flat_ids = b.reshape(ids.name, ids.shape, (-1, top_k))
    flat_weights = b.reshape(weights.name, weights.shape, (-1, top_k))
    hit = b.emit("Unique", flat_ids, sorted=1)
    start = b.emit("Mul", flat, b.constant(0.0, np.float32))
    body = b.child()
    step, go, so_far = (body.name(n) for n in ("step", "go", "so_far"))
    expert = body.emit("Gather", hit, step, axis=0)
    pairs = body.emit("Transpose", body.emit("NonZero", body.emit("Equal", flat_ids, expert)), perm=[1, 0])
    rows = body.slice(pairs, 0, 1, 1)
    mine = body.emit("GatherND", flat, rows)
    share = body.unsqueeze(body.emit("GatherND", flat_weights, pairs), -1)
    up = body.emit("Gemm", mine, body.emit("Gather", w_gate_up.name, expert, axis=0), transB=1)
    down = body.emit("Gather", w_down.name, expert, axis=0)
    y = body.emit("Gemm", swiglu_of(body, up, width), down, transB=1)
    total = body.emit("ScatterND", so_far, rows, body.emit("Mul", y, share), reduction="add")
    more = body.emit("Identity", go)
    graph = helper.make_graph(
        body.nodes,
        body.name("one_expert"),
        [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            helper.make_tensor_value_info(so_far, TensorProto.FLOAT, [None, hidden]),
        ],
        [
            helper.make_tensor_value_info(more, TensorProto.BOOL, []),
            helper.make_tensor_value_info(total, TensorProto.FLOAT, [None, hidden]),
        ],
    )
    trips = b.emit("Squeeze", b.emit("Shape", hit), b.constant([0]))
    result = b.emit("Loop", trips, b.constant(True, np.bool_), start, body=graph)
    return b.reshape(result, (), out.shape)


RULES: dict[Any, Rule] = {_DSV2.gate.default: gate, _DSV2.experts.default: experts}
ORT_RULES: dict[Any, Rule] = {_DSV2.experts.default: experts_ort}
