"""Every rule of the ONNX Runtime backend against the dialect's own meaning in fp64, in three runtimes."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dsv2_compile.backends.onnxruntime import lower
from dsv2_compile.backends.onnxruntime.lowering import RULES
from dsv2_compile.errors import ModelError
from dsv2_compile.kernels.dialect import OPS
from dsv2_compile.program import BATCH, CONTEXT, TOKENS, Program
from tests.ort_graphs import Graph, expected, random_leaves, relative, run_onnx

ATEN, DSV2 = torch.ops.aten, torch.ops.dsv2
MODES = ("ort", "portable", "reference")
SIZES = [(3, 5, 7), (1, 1, 9), (2, 1, 0), (2, 4, 0), (1, 1, 0)]
"""batch, tokens, context."""
LIMIT = 2e-6
"""Largest error over largest value: a few roundings of fp32."""
Case = Callable[[Graph, Any], dict[str, Any]]


def _rms_norm(g: Graph, s: Any) -> dict[str, Any]:
    return {"y": g.op(DSV2.rms_norm.default, g.input("x", BATCH, s, 11), g.weight("w", 11), 1e-3)}


def _add_rms_norm(g: Graph, s: Any) -> dict[str, Any]:
    x, residual = g.input("x", BATCH, s, 11), g.input("residual", BATCH, s, 11)
    y, total = g.parts(g.op(DSV2.add_rms_norm.default, x, residual, g.weight("w", 11), 1e-3), 2)
    return {"y": y, "total": total}


def _rope(g: Graph, s: Any) -> dict[str, Any]:
    angles = [g.input(n, BATCH, s, 3) for n in ("cos", "sin")]
    return {"y": g.op(DSV2.rope.default, g.input("q", BATCH, s, 5, 7 + 6), *angles, 7)}


def _latent_rope(g: Graph, s: Any) -> dict[str, Any]:
    angles = [g.input(n, BATCH, s, 2) for n in ("cos", "sin")]
    return {"y": g.op(DSV2.latent_rope.default, g.input("kv", BATCH, s, 9 + 4), g.weight("w", 9), *angles, 1e-6)}


def _swiglu(g: Graph, s: Any) -> dict[str, Any]:
    return {"y": g.op(DSV2.swiglu.default, g.input("x", BATCH, s, 14))}


def _head_linear(g: Graph, s: Any) -> dict[str, Any]:
    return {"y": g.op(DSV2.head_linear.default, g.input("x", BATCH, s, 3, 7), g.weight("w", 3, 5, 7))}


def _absorbed(g: Graph, s: Any) -> dict[str, Any]:
    q, cache = g.input("q", BATCH, s, 3, 11 + 4), g.input("cache.0", BATCH, CONTEXT, 15)
    rows, past = g.input("new", BATCH, s, 15), g.input("past", BATCH, dtype=torch.int64)
    return {"y": g.op(DSV2.mla_absorbed.default, q, cache, rows, past, 0.7, 11)}


def _expanded(g: Graph, s: Any) -> dict[str, Any]:
    q, cache = g.input("q", BATCH, s, 3, 6 + 4), g.input("cache.0", BATCH, CONTEXT, 11 + 4)
    rows, past = g.input("new", BATCH, s, 15), g.input("past", BATCH, dtype=torch.int64)
    w = g.weight("w", 3 * (6 + 5), 11)
    return {"y": g.op(DSV2.mla_expanded.default, q, cache, rows, w, past, 0.7, 5)}


def _gate(n_group: int, topk_group: int, scale: float, normalize: bool, top_k: int = 3) -> Case:
    def build(g: Graph, s: Any) -> dict[str, Any]:
        x, w = g.input("x", BATCH, s, 9), g.weight("w", 12, 9)
        node = g.op(DSV2.gate.default, x, w, top_k, n_group, topk_group, scale, normalize)
        return dict(zip(("ids", "weights"), g.parts(node, 2), strict=True))

    return build


def _experts(top_k: int, count: int = 6) -> Case:
    def build(g: Graph, s: Any) -> dict[str, Any]:
        x, ids = g.input("x", BATCH, s, 9), g.input("ids", BATCH, s, top_k, dtype=torch.int64)
        weights = g.input("share", BATCH, s, top_k)
        up, down = g.expert_weight("up", count, 14, 9), g.expert_weight("down", count, 9, 7)
        return {"y": g.op(DSV2.experts.default, x, ids, weights, up, down)}

    return build


def _embedding(g: Graph, s: Any) -> dict[str, Any]:
    ids = g.input("tokens", BATCH, s, dtype=torch.int64)
    return {"y": g.op(ATEN.embedding.default, g.weight("w", 8, 5), ids, shape=(BATCH, s, 5))}


def _linear(g: Graph, s: Any) -> dict[str, Any]:
    return {"y": g.op(ATEN.linear.default, g.input("x", BATCH, s, 9), g.weight("w", 5, 9), shape=(BATCH, s, 5))}


def _arithmetic(g: Graph, s: Any) -> dict[str, Any]:
    a, b, c = (g.input(n, BATCH, s, 5) for n in "abc")
    total = g.op(ATEN.add.Tensor, a, b, shape=(BATCH, s, 5))
    product = g.op(ATEN.mul.Tensor, g.op(ATEN.sub.Tensor, total, 0.25, shape=(BATCH, s, 5)), c, shape=(BATCH, s, 5))
    return {"y": g.op(ATEN.silu.default, g.op(ATEN.mul.Tensor, product, 1.5, shape=(BATCH, s, 5)), shape=(BATCH, s, 5))}


def _shapes(g: Graph, s: Any) -> dict[str, Any]:
    x = g.input("x", BATCH, s, 12)
    sizes = [g.op(ATEN.sym_size.int, x, i) for i in (0, 1)]
    heads = g.op(ATEN.view.default, x, [*sizes, 3, 4], shape=(BATCH, s, 3, 4))
    flat = g.op(ATEN.flatten.using_ints, heads, -2, shape=(BATCH, s, 12))
    parts = g.op(ATEN.split_with_sizes.default, flat, [5, 7], -1)
    parts.meta["spec"] = tuple(type(x.meta["spec"])((BATCH, s, n), torch.float32) for n in (5, 7))
    low, high = g.parts(parts, 2)
    pad = g.op(ATEN.slice.Tensor, high, 2, 1, 3, shape=(BATCH, s, 2))
    y = g.op(ATEN.cat.default, [high, low, pad], -1, shape=(BATCH, s, 14))
    wide = g.op(ATEN.unsqueeze.default, y, 2, shape=(BATCH, s, 1, 14))
    wide = g.op(ATEN.expand.default, wide, [*sizes, 3, 14], shape=(BATCH, s, 3, 14))
    one = g.op(ATEN.select.int, wide, 2, 1, shape=(BATCH, s, 14))
    count = g.graph.call_function(operator.mul, (sizes[0], sizes[1]))
    return {"wide": wide, "rows": g.op(ATEN.reshape.default, one, [count, 14], shape=(BATCH * s, 14))}


def _positions(g: Graph, s: Any) -> dict[str, Any]:
    past, x = g.input("past", BATCH, dtype=torch.int64), g.input("x", BATCH, s, 9)
    size = g.op(ATEN.sym_size.int, x, 1)
    steps = g.op(ATEN.arange.default, size, device=torch.device("cpu"), pin_memory=False, shape=(s,))
    start = g.op(ATEN.unsqueeze.default, past, 1, shape=(BATCH, 1))
    positions = g.op(ATEN.add.Tensor, start, steps, shape=(BATCH, s))
    positions = g.op(ATEN.clamp.default, positions, None, 6, shape=(BATCH, s))
    table = g.weight("rope.cos", 7, 3)
    return {"y": g.op(ATEN.index.Tensor, table, [positions], shape=(BATCH, s, 3))}


def _last(g: Graph, s: Any) -> dict[str, Any]:
    x, lengths = g.input("x", BATCH, s, 9), g.input("lengths", BATCH, dtype=torch.int64)
    rows = g.op(ATEN.arange.default, g.op(ATEN.sym_size.int, x, 0), shape=(BATCH,))
    ends = g.op(ATEN.sub.Tensor, lengths, 1, shape=(BATCH,))
    return {"y": g.op(ATEN.index.Tensor, x, [rows, ends], shape=(BATCH, 9))}


CASES: dict[str, Case] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "rope": _rope,
    "latent_rope": _latent_rope,
    "swiglu": _swiglu,
    "head_linear": _head_linear,
    "mla_absorbed": _absorbed,
    "mla_expanded": _expanded,
    "gate_greedy": _gate(1, 1, 1.0, False),
    "gate_scaled": _gate(1, 1, 16.0, False),
    "gate_normalized": _gate(1, 1, 1.0, True),
    "gate_grouped": _gate(4, 2, 16.0, False),
    "gate_grouped_zeros": _gate(6, 1, 2.5, False),
    "experts": _experts(2),
    "experts_one": _experts(1),
    "experts_all": _experts(6),
    "embedding": _embedding,
    "linear": _linear,
    "arithmetic": _arithmetic,
    "shapes": _shapes,
    "positions": _positions,
    "last": _last,
}


def build(case: str, tokens: Any) -> Program:
    g = Graph(phase="decode" if tokens == 1 else "prefill")
    return g.program(**CASES[case](g, tokens))


def feeds_of(program: Program, batch: int, tokens: int, context: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs; ragged past with a row of none and a row that sees the whole cache."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for name, spec in program.inputs.items():
        shape = spec.concrete(batch=batch, tokens=tokens, context=context)
        if name == "past":
            feeds[name] = np.resize([context, context // 2, 0], batch)
        elif name == "lengths":
            feeds[name] = rng.integers(1, tokens + 1, shape)
        elif name == "tokens":
            feeds[name] = rng.integers(0, 8, shape)
        elif name == "ids":
            order = rng.permuted(np.tile(np.arange(6), (batch, tokens, 1)), axis=-1)
            feeds[name] = np.ascontiguousarray(order[..., : shape[-1]])
        elif name == "share":
            feeds[name] = rng.random(shape, np.float32) * 16
        else:
            feeds[name] = rng.standard_normal(shape, np.float32)
    return {k: v.astype(np.int64) if v.dtype.kind == "i" else v for k, v in feeds.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_rule_equals_dialect(case, mode, tmp_path):
    for batch, tokens, context in SIZES:
        program = build(case, 1 if tokens == 1 else TOKENS)
        seed = zlib.crc32(f"{case} {batch} {tokens}".encode())
        feeds = feeds_of(program, batch, tokens, context, seed)
        leaves = random_leaves(program, seed)
        got = run_onnx(program, leaves, tmp_path, feeds, mode)
        want = expected(program, leaves, feeds)
        assert set(got) == set(want)
        for name, value in want.items():
            if not value.is_floating_point():
                np.testing.assert_array_equal(got[name], value.numpy())
            error = relative(got[name], value)
            assert error < LIMIT, f"{name} at {batch, tokens, context}: {error:.2e}"


def test_every_dialect_operator_has_a_rule_and_a_case():
    assert set(OPS) <= set(RULES)
    used = {n.target for case in CASES for n in build(case, TOKENS).graph.nodes if n.op == "call_function"}
    assert set(OPS) <= used


@pytest.mark.parametrize("mode", MODES)
def test_gate_ties_go_to_the_lowest_expert(mode, tmp_path):
    g = Graph()
    x, w = g.input("x", BATCH, TOKENS, 4), g.weight("w", 12, 4)
    node = g.op(DSV2.gate.default, x, w, 5, 4, 3, 2.0, False)
    program = g.program(**dict(zip(("ids", "weights"), g.parts(node, 2), strict=True)))
    values = torch.tensor([1, 2, 1, 0, 2, 2, 1, 1, 2, 0, 0, 2.0])  # every group of 3 but the third has maximum 2
    leaves = random_leaves(program, w=torch.stack([values, -values, 0 * values, values], 1))
    feeds = {"x": np.eye(4, dtype=np.float32)[None]}
    got, want = run_onnx(program, leaves, tmp_path, feeds, mode), expected(program, leaves, feeds)
    np.testing.assert_array_equal(got["ids"], want["ids"].numpy())
    assert want["ids"][0, 2].tolist() == [0, 1, 2, 3, 4]


WEIGHTS = {
    "zero among others": [[0.0, 0.5, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]],
    "all zero": [[0.0, 0.0, 0.0]] * 3,
    "equal": [[0.125, 0.125, 0.125]] * 3,
    "tiny": [[1e-20, 1e-25, 1.0], [1e-12, 1e-12, 1e-12], [1e-7, 1.0, 1e-7]],
    "large": [[16.0, 15.9, 1e-3], [1e4, 1.0, 1e-4], [256.0, 256.0, 256.0]],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_experts_take_any_weights(kind, mode, tmp_path):
    """Each token on its own scale: a small weight must not hide behind the largest token."""
    g = Graph()
    program = g.program(**_experts(3)(g, TOKENS))
    feeds = feeds_of(program, 1, 3, 0, 5)
    feeds["ids"] = np.array([[[0, 3, 5], [3, 1, 0], [5, 3, 1]]])  # experts 2 and 4 have no token
    feeds["share"] = np.array([WEIGHTS[kind]], np.float32)
    leaves = random_leaves(program, 5)
    got, want = run_onnx(program, leaves, tmp_path, feeds, mode)["y"], expected(program, leaves, feeds)["y"]
    for token in range(3):
        if kind == "all zero":
            assert not got[0, token].any()
        else:
            assert relative(got[0, token], want[0, token]) < LIMIT


def test_absorbed_attention_reads_the_cache_in_place():
    """No node but the two products may touch the cache."""
    program = build("mla_absorbed", 1)
    readers = [n.op_type for n in lower(program).model.graph.node if "cache.0" in n.input]
    assert sorted(readers) == ["FusedMatMul", "MatMul", "Shape"]


def test_masks_and_sizes_are_computed_once():
    def nodes(layers: int) -> list[str]:
        g = Graph()
        q, past = g.input("q", BATCH, TOKENS, 3, 15), g.input("past", BATCH, dtype=torch.int64)
        caches = [g.input(f"cache.{i}", BATCH, CONTEXT, 15) for i in range(layers)]
        new = g.input("new", BATCH, TOKENS, 15)
        outs = {f"y{i}": g.op(DSV2.mla_absorbed.default, q, c, new, past, 0.7, 11) for i, c in enumerate(caches)}
        return [n.op_type for n in lower(g.program(**outs)).model.graph.node]

    one, three = nodes(1), nodes(3)
    for op in ("Range", "Less", "Where", "Expand", "Shape", "Unsqueeze"):
        assert one.count(op) == three.count(op) > 0
    assert three.count("Softmax") == 3


def test_unknown_operator_is_named():
    g = Graph()
    program = g.program(y=g.op(ATEN.cos.default, g.input("x", BATCH, 3), shape=(BATCH, 3)))
    with pytest.raises(ModelError, match=r"no rule for aten\.cos\.default, at node cos[^|]*supported: .*dsv2\.gate"):
        lower(program)


def test_unknown_argument_is_named():
    g = Graph()
    x = g.input("x", BATCH, 3)
    with pytest.raises(ModelError, match=r"cannot lower aten\.add\.Tensor .* at node add.*alpha"):
        lower(g.program(y=g.op(ATEN.add.Tensor, x, x, alpha=2, shape=(BATCH, 3))))


def test_other_dtypes_are_refused():
    g = Graph()
    x = g.input("x", BATCH, 3, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match=r"x is torch\.bfloat16"):
        lower(g.program(y=g.op(ATEN.add.Tensor, x, x, shape=(BATCH, 3))))
