"""The whole pipeline over the family's configs: every promised match is made, and every pass keeps its claim.

Configs are run as they are, with odd dims, not as the twin that a build checks; the twin has its own test.
Each export is made once for the module and copied as text.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from dsv2_compile import compiler
from dsv2_compile.compiler import CompileOptions, compile_program
from dsv2_compile.config import ModelConfig, RopeConfig
from dsv2_compile.errors import PassError, UsageError
from dsv2_compile.evaluate import evaluate
from dsv2_compile.export import export
from dsv2_compile.ir_text import parse_program, program_text
from dsv2_compile.passes.absorb import FORMS, Absorb, check_forms
from dsv2_compile.passes.pipeline import check_lowerable, pipeline, run
from dsv2_compile.program import Program
from dsv2_compile.targets import TARGETS
from dsv2_compile.verify.passes import RandomWeights, check_passes, difference

YARN = RopeConfig(kind="yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.7)
BASE = ModelConfig(
    vocab_size=37, hidden_size=26, num_hidden_layers=2, num_attention_heads=3, q_lora_rank=9, kv_lora_rank=11,
    qk_nope_head_dim=7, qk_rope_head_dim=6, v_head_dim=5, intermediate_size=17, first_k_dense_replace=1,
    moe_intermediate_size=13, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3,
    routed_scaling_factor=1.5, max_position_embeddings=64, rope=YARN,
)  # fmt: skip
LIMITED = replace(BASE, topk_method="group_limited_greedy", n_group=4, topk_group=2)
CONFIGS = {
    "greedy": BASE,
    "no q_lora": replace(BASE, q_lora_rank=None),
    "group-limited": LIMITED,
    "group-limited, renormalised, no shared experts": replace(LIMITED, norm_topk_prob=True, n_shared_experts=0),
    "one group": replace(LIMITED, n_group=1, topk_group=1),
    "all groups kept, every expert": replace(LIMITED, topk_group=4, num_experts_per_tok=12),
    "renormalised, tied embeddings": replace(BASE, norm_topk_prob=True, tie_word_embeddings=True),
    "top-1, renormalised in vain, default rope, another eps": replace(
        BASE, num_experts_per_tok=1, norm_topk_prob=True, rope=RopeConfig(), rms_norm_eps=1e-5
    ),
    "all dense": replace(BASE, n_routed_experts=0),
    "one layer, with experts": replace(BASE, num_hidden_layers=1, first_k_dense_replace=0),
    "two dense layers, one head, equal dims": replace(
        BASE,
        num_hidden_layers=3,
        first_k_dense_replace=2,
        num_attention_heads=1,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
}
CASES = [("greedy", "prefill", f) for f in FORMS] + [("no q_lora", "decode", f) for f in FORMS]
CASES += [(name, ("prefill", "decode")[i % 2], FORMS[i % 3]) for i, name in enumerate(CONFIGS) if i > 1]


@cache
def exported(name: str, phase: str) -> str:
    return program_text(export(CONFIGS[name], phase, torch.float64))


def naive(name: str, phase: str) -> Program:
    return parse_program(exported(name, phase), CONFIGS[name], phase)


def inputs(program: Program) -> dict[str, torch.Tensor]:
    """Three ragged rows: full, partly filled and empty cache."""
    c, g = program.config, torch.Generator().manual_seed(3)
    count = 4 if program.phase == "prefill" else 1
    given = {
        "tokens": torch.randint(c.vocab_size, (3, count), generator=g),
        "past": torch.tensor([5, 2, 0]),
        "lengths": torch.tensor([count, 1, count]),
    }
    for i in range(c.num_hidden_layers):
        given[f"cache.{i}"] = torch.randn(3, 5, c.cache_dim, generator=g, dtype=torch.float64)
    return {k: given[k] for k in program.inputs}


def outputs(program: Program) -> dict[str, torch.Tensor]:
    source = RandomWeights(program.config, 0)
    weights = {k: r.evaluate(source, torch.float64) for k, r in program.weights.recipes.items()}
    return evaluate(program, inputs(program), weights)


def promised(c: ModelConfig) -> dict[str, int]:
    """Matches by pass, counted from the model's description and not from the passes."""
    layers, moe = c.num_hidden_layers, max(0, c.num_hidden_layers - c.first_k_dense_replace) * (c.n_routed_experts > 0)
    mlps = layers - moe + (moe if c.n_shared_experts else 0)
    norms = 2 + 1 + (c.q_lora_rank is not None)  # input, post-attention, latent, query
    return {
        "rms_norm": norms * layers + 1,
        "rope": layers,
        "cache_rows": layers,
        "gate": moe,
        "experts": moe,
        "attention": layers,
        "absorb": layers,
        "merge_projections": layers + mlps,
        "swiglu": mlps,
        "residual_norm": 2 * layers - 1,
    }


@pytest.mark.parametrize(("name", "phase", "form"), CASES)
def test_every_config_is_fused_and_computes_the_same(name, phase, form):
    program = naive(name, phase)
    before = outputs(program)
    passes = pipeline(forms={phase: form})
    records = run(program, passes)
    check_lowerable(program)
    assert {r.name: r.matches for r in records if r.expected is not None} == promised(CONFIGS[name])
    assert program.notes["mla_form"] == form
    assert difference(before, outputs(program)) <= sum(p.tolerance for p in passes)
    attention = {"expanded": "mla_expanded", "absorbed": "mla_absorbed", "merged": "mla_absorbed"}[form]
    text = program_text(program)
    assert text.count(f"dsv2.{attention}") == CONFIGS[name].num_hidden_layers
    assert text == program_text(parse_program(text, program.config, phase))


@pytest.mark.parametrize(("phase", "form"), [("prefill", "merged"), ("decode", "absorbed")])
def test_every_pass_keeps_its_claim_on_the_twin(phase, form):
    passes = pipeline(forms={phase: form})
    records = check_passes(LIMITED, phase, passes)
    assert [r.name for r in records] == [p.name for p in passes]
    for p, r in zip(passes, records, strict=True):
        assert r.error is not None
        assert r.error <= p.tolerance


CUT = {
    "rms_norm": (
        "aten.mean.dim(%pow_3, [-1], True)",
        "aten.mean.dim(%pow_3, [1], True)",
        "argument 1 of mean_2 should be -1 but is 1",
    ),
    "rope": ("aten.sub.Tensor(%mul_4", "aten.add.Tensor(%mul_4", "argument 0 of stack should be aten.sub.Tensor"),
    "cache_rows": (
        "aten.stack.default([%sub_1, %add_5]",
        "aten.stack.default([%add_5, %sub_1]",
        "argument 0 of stack_1 should be aten.sub.Tensor",
    ),
    "attention": ("aten.tril.default(%ones)", "aten.tril.default(%ones, 1)", "tril should be 1 arguments"),
}
"""A line of the exported graph of "greedy" changed, and what the pass then says."""


@pytest.mark.parametrize("name", CUT)
def test_a_pattern_that_should_match_and_does_not_is_an_error(name):
    out, into, message = CUT[name]
    text = exported("greedy", "prefill")
    assert text.count(out) == 1
    program = parse_program(text.replace(out, into), BASE, "prefill")
    expected = 0 if name == "attention" else promised(BASE)[name] - 1  # one mask serves all layers
    with pytest.raises(PassError) as e:
        run(program, pipeline())
    assert e.value.cause.startswith(
        f"pass {name} matched {expected} of {promised(BASE)[name]} in prefill; nearest miss at "
    )
    assert message in e.value.cause


INSERT = {
    "gate": ("aten.softmax.int(%linear_", "argument 0 of softmax_2 should be aten.linear.default but is inserted"),
    "experts": ("aten.silu.default(%getitem_", "should be <built-in function getitem> but is inserted"),
}


@pytest.mark.parametrize("name", INSERT)
def test_a_node_between_breaks_the_pattern_and_is_named(name):
    anchor, message = INSERT[name]
    lines = exported("greedy", "prefill").splitlines()
    (at,) = [i for i, line in enumerate(lines) if anchor in line]
    value = lines[at].split(" = ")[1].split("(%")[1].split(",")[0].rstrip(")")
    kind = next(line for line in lines if line.startswith(f"%{value}: ")).split(": ")[1].split(" = ")[0]
    lines[at] = lines[at].replace(f"(%{value}", "(%inserted")
    lines.insert(at, f"%inserted: {kind} = aten.neg.default(%{value})")
    with pytest.raises(PassError, match=f"pass {name} matched") as e:
        run(parse_program("\n".join(lines), BASE, "prefill"), pipeline())
    assert message in e.value.cause


def test_the_order_of_the_passes_is_checked():
    passes = [p for p in pipeline() if p.name != "rope"]
    with pytest.raises(PassError, match="attention needs rope before it"):
        run(naive("greedy", "prefill"), passes)


def test_absorb_takes_the_cheapest_form_unless_asked():
    program = naive("greedy", "decode")
    reason = {r.name: r.reason for r in run(program, pipeline(TARGETS["h800"]))}["absorb"]
    times = {f: float(reason.split(f"{f} ")[1].split(" us")[0]) for f in FORMS if f"{f} " in reason}
    assert set(times) == set(FORMS)
    assert times[program.notes["mla_form"]] == min(times.values())
    assert "cheapest" in reason
    assert "h800" in reason
    for wrong in ({"decode": "fused"}, {"train": "merged"}):
        with pytest.raises(UsageError, match="no MLA form"):
            check_forms(wrong)
    assert Absorb(forms={"decode": "merged"}).forms == {"decode": "merged"}


TWINS = {
    "all groups kept, every expert": (12, 12, 4, 4),
    "group-limited": (12, 3, 4, 2),
    "one group": (12, 3, 1, 1),
    "greedy": (7, 3, 1, 1),
    "all dense": (0, 3, 1, 1),
}
"""Experts, experts per token, groups and groups kept of the twin."""


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_has_the_structure_of_its_model(name):
    t = CONFIGS[name].twin()
    assert (t.n_routed_experts, t.num_experts_per_tok, t.n_group, t.topk_group) == TWINS[name]
    assert [promised(t)[k] > 0 for k in promised(t)] == [promised(CONFIGS[name])[k] > 0 for k in promised(t)]


def test_every_pass_keeps_its_claim_where_every_expert_is_taken():
    records = check_passes(CONFIGS["all groups kept, every expert"], "decode", pipeline())
    assert {r.name: r.matches for r in records}["gate"] == 2


def test_the_graph_after_every_pass_is_written_and_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "export", lambda config, phase, dtype, positions: naive("greedy", phase))
    options = CompileOptions(TARGETS["cpu"], 64, {}, check=False, dump=tmp_path)
    program, records = compile_program(BASE, "prefill", options)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == [f"prefill.{i:02}.{name}.txt" for i, name in enumerate(["exported", *(r.name for r in records)])]
    texts = [(tmp_path / name).read_text() for name in files]
    assert texts[-1] == program_text(program)
    for text, record in zip(texts[1:], records, strict=True):
        assert program_text(parse_program(text, BASE, "prefill")) == text
        assert len(text.splitlines()) == record.nodes_after
