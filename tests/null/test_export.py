"""The exported programs are the reference: node for node, at every size, in fp64 without a difference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from dsv2_compile.config import ModelConfig, RopeConfig
from dsv2_compile.evaluate import evaluate
from dsv2_compile.export import PHASES, Piece, Stamper, export, pieces, trace
from dsv2_compile.ir_text import program_text
from dsv2_compile.model import reference
from dsv2_compile.model.layout import checkpoint_tensors
from dsv2_compile.model.reference import LazyWeights
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.verify.passes import RandomWeights
from dsv2_compile.weights import WeightTable

V2 = ModelConfig(
    vocab_size=37, hidden_size=26, num_hidden_layers=3, num_attention_heads=3, q_lora_rank=9, kv_lora_rank=11,
    qk_nope_head_dim=7, qk_rope_head_dim=6, v_head_dim=5, intermediate_size=17, first_k_dense_replace=1,
    moe_intermediate_size=13, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3,
    topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=1.5, max_position_embeddings=24,
    rope=RopeConfig(kind="yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.7),
)  # fmt: skip
PUBLISHED = ModelConfig(
    vocab_size=102400, hidden_size=5120, num_hidden_layers=60, num_attention_heads=128, q_lora_rank=1536,
    kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, intermediate_size=12288,
    first_k_dense_replace=1, moe_intermediate_size=1536, n_routed_experts=160, n_shared_experts=2,
    num_experts_per_tok=6, topk_method="group_limited_greedy", n_group=8, topk_group=3, routed_scaling_factor=16.0,
    rope=RopeConfig(kind="yarn", factor=40.0, mscale=0.707, mscale_all_dim=0.707),
)  # fmt: skip
"""DeepSeek-V2, 236B."""


@cache
def stamped(phase: str) -> Program:
    return export(V2, phase, torch.float64)


@cache
def weights() -> dict[str, torch.Tensor]:
    return dict(LazyWeights(RandomWeights(V2, 0), V2, torch.float64, V2.max_position_embeddings))


def inputs(program: Program, batch: int, tokens: int, context: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Ragged rows of the given sizes; ``past`` from 0 to ``context``, ``lengths`` from 1 to ``tokens``."""
    g = torch.Generator().manual_seed(seed)
    c = program.config
    given = {
        "tokens": torch.randint(c.vocab_size, (batch, tokens), generator=g),
        "past": torch.randint(context + 1, (batch,), generator=g),
        "lengths": torch.randint(1, tokens + 1, (batch,), generator=g),
    }
    for i in range(c.num_hidden_layers):
        given[f"cache.{i}"] = torch.randn(batch, context, c.cache_dim, generator=g, dtype=torch.float64)
    return {k: given[k] for k in program.inputs}


def eager(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reference on the inputs of a program; a decode step has one valid token."""
    caches = [given[f"cache.{i}"] for i in range(V2.num_hidden_layers)]
    lengths = given.get("lengths", torch.ones_like(given["past"]))
    logits, rows = reference.forward(V2, weights(), given["tokens"], given["past"], lengths, caches)
    return {"logits": logits, **{f"rows.{i}": r for i, r in enumerate(rows)}}


def whole(phase: str) -> Program:
    """The program from one export of the whole model, without pieces and stamps."""
    p = stamped(phase)
    specs = {n: TensorSpec(p.weights[n].shape, torch.float64) for n in p.weights.recipes}

    def fn(v: Any, w: Any) -> tuple[torch.Tensor, ...]:
        caches = [v[f"cache.{i}"] for i in range(V2.num_hidden_layers)]
        if phase == "prefill":
            logits, rows = reference.forward(V2, w, v["tokens"], v["past"], v["lengths"], caches)
        else:
            hidden, rows = reference.hidden_states(V2, w, v["tokens"], v["past"], caches)
            logits = reference.head(V2, w, hidden[:, 0])
        return (logits, *rows)

    piece = Piece(fn, p.inputs, tuple(p.outputs), specs)
    s = Stamper()
    nodes = {name: s.placeholder(name, spec) for name, spec in p.inputs.items()}
    s.graph.output(s.stamp(piece, trace(piece), nodes, str))
    return Program(phase, V2, s.graph, p.symbols, p.inputs, p.outputs, p.weights)


def shape_of(program: Program) -> list[tuple[str, str]]:
    """Operator and spec of every tensor node in order; sizes are named apart, and so dropped."""
    calls = (n for n in program.graph.nodes if n.op == "call_function" and "spec" in n.meta)
    return [(str(n.target), str(n.meta["spec"])) for n in calls]


@pytest.mark.parametrize("phase", PHASES)
def test_the_stamped_program_is_one_export_of_the_whole_model(phase):
    one, many = whole(phase), stamped(phase)
    assert shape_of(one) == shape_of(many)
    assert len(shape_of(one)) > 300
    given = inputs(many, 3, 5 if phase == "prefill" else 1, 7)
    a, b = evaluate(one, given, weights()), evaluate(many, given, weights())
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


SIZES = [(1, 1, 0), (1, 9, 0), (4, 1, 11), (2, 3, 1), (3, 9, 11), (4, 5, 7), (1, 2, 5)]


@pytest.mark.parametrize("phase", PHASES)
def test_every_size_computes_what_the_reference_computes(phase):
    program = stamped(phase)
    sizes = SIZES if phase == "prefill" else sorted({(b, 1, c) for b, _, c in SIZES})
    for n, (batch, tokens, context) in enumerate(sizes):
        given = inputs(program, batch, tokens, context, n)
        got, expected = evaluate(program, given, weights()), eager(given)
        for name, spec in program.outputs.items():
            assert tuple(got[name].shape) == spec.concrete(batch=batch, tokens=tokens, context=context)
            assert torch.equal(got[name], expected[name]), (name, batch, tokens, context)


@pytest.mark.parametrize("phase", PHASES)
def test_no_size_of_the_trace_is_left_in_the_graph(phase):
    """3 sequences, 5 tokens and 7 cached positions were traced; every dim that they gave is a symbol."""
    program = stamped(phase)
    fixed = {61, 37, 26, 24, 3, 1, 4, 12, 2}
    for node in program.graph.nodes:
        spec = node.meta.get("spec")
        for s in spec if isinstance(spec, tuple) else [spec] if spec and node.op == "call_function" else []:
            first = s.shape[0] if s.shape else None
            assert not isinstance(first, int) or first in (1, 5, 7) or first in fixed, (node.name, str(s))
    text = program_text(program)
    assert "meta" not in text
    assert "device" not in text


def test_right_padding_and_hidden_cache_rows_are_never_read():
    """Rows past ``lengths`` and cached positions past ``past`` may hold anything finite, even other tokens."""
    program = stamped("prefill")
    given = inputs(program, 3, 5, 7)
    given |= {"past": torch.tensor([7, 2, 0]), "lengths": torch.tensor([5, 1, 3])}
    clean = evaluate(program, given, weights())
    dirty = {k: v.clone() for k, v in given.items()}
    for b in range(3):
        dirty["tokens"][b, given["lengths"][b] :] = 1
        for i in range(V2.num_hidden_layers):
            dirty[f"cache.{i}"][b, given["past"][b] :] = 1e3
    got = evaluate(program, dirty, weights())
    assert torch.equal(got["logits"], clean["logits"])
    for b in range(3):
        assert torch.equal(got["rows.2"][b, : given["lengths"][b]], clean["rows.2"][b, : given["lengths"][b]])


def test_no_expert_is_lost():
    """A token for every expert: the router's rows are turned so that token e chooses expert e first."""
    one_moe = replace(V2, num_hidden_layers=1, first_k_dense_replace=0, topk_method="greedy", n_group=1, topk_group=1)
    one_moe = replace(one_moe, num_experts_per_tok=1)
    experts = one_moe.n_routed_experts
    part = pieces(one_moe, "prefill", torch.float64, 24)["moe"]
    source = RandomWeights(one_moe, 0)
    w = reference.LayerWeights(LazyWeights(source, one_moe, torch.float64, 24), 0)
    hidden = torch.randn(1, experts, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    chosen: list[torch.Tensor] = []
    route = reference.route

    def turned(config: ModelConfig, gate: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, scores = route(config, torch.linalg.pinv(x[0]).T if x.device.type != "meta" else gate, x)
        chosen.append(ids)
        return ids, scores

    given = {
        "hidden": hidden,
        "cache": torch.zeros(1, 0, one_moe.cache_dim, dtype=torch.float64),
        "cos": torch.ones(1, experts, 3, dtype=torch.float64),
        "sin": torch.zeros(1, experts, 3, dtype=torch.float64),
        "visible": torch.eye(experts, dtype=torch.bool)[None],
    }
    ctx = reference.Context(given["cos"], given["sin"], given["visible"])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(reference, "route", turned)
        expected, _ = reference.layer(one_moe, w, True, hidden, given["cache"], ctx)
    assert sorted(chosen[0].flatten().tolist()) == list(range(experts))

    attended = (
        hidden
        + reference.attention(
            one_moe, w, reference.rms_norm(hidden, w["input_layernorm.weight"], 1e-6), given["cache"], ctx
        )[0]
    )
    x = reference.rms_norm(attended, w["post_attention_layernorm.weight"], one_moe.rms_norm_eps)
    router = torch.linalg.pinv(x[0]).T
    program = stamp_alone(part, one_moe)
    plain = {n: w[n] for n in part.weights}
    assert torch.equal(evaluate(program, given, plain | {"mlp.gate.weight": router})["hidden"], expected)
    assert not torch.equal(evaluate(program, given, plain)["hidden"], expected)


def stamp_alone(piece: Piece, config: ModelConfig) -> Program:
    s = Stamper()
    nodes = {name: s.placeholder(name, spec) for name, spec in piece.inputs.items()}
    s.graph.output(s.stamp(piece, trace(piece), nodes, str))
    outputs = dict.fromkeys(piece.outputs, piece.inputs["hidden"])
    return Program("prefill", config, s.graph, {}, dict(piece.inputs), outputs, WeightTable({}))


@pytest.mark.parametrize("phase", PHASES)
def test_the_published_236b_model_exports_on_meta_tensors(phase):
    program = export(PUBLISHED, phase)
    assert len(list(program.nodes(torch.ops.aten.softmax.int))) == 60 + 59  # attention, routers
    assert {n.target for n in program.graph.nodes if n.op == "get_attr"} == set(program.weights.recipes)
    leaves = [leaf for r in program.weights.recipes.values() for leaf in r.leaves()]
    assert sorted(leaves) == sorted(checkpoint_tensors(PUBLISHED))
    assert program.inputs["cache.59"].concrete(batch=2, tokens=1, context=9) == (2, 9, 576)
