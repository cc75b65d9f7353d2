"""Random members of the family: every promised match is made, in every form of MLA, and nothing is changed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from dsv2_compile.config import ModelConfig, RopeConfig
from dsv2_compile.export import PHASES, export
from dsv2_compile.ir_text import parse_program, program_text
from dsv2_compile.passes.absorb import FORMS
from dsv2_compile.passes.pipeline import check_lowerable, pipeline, run
from dsv2_compile.verify.passes import difference
from tests.null.test_passes_configs import BASE, outputs, promised

pytestmark = pytest.mark.slow


def member(seed: int) -> ModelConfig:
    """Any dims, equal ones among them; any number of dense layers; greedy or in groups."""
    r = random.Random(seed)
    groups = r.choice([0, 0, 1, 2, 3, 4])
    members = r.randint(1, 5)
    experts = groups * members if groups else r.choice([0, 1, 2, 5, 9])
    kept = r.randint(1, groups) if groups else 1
    layers = r.randint(1, 4)
    return replace(
        BASE,
        hidden_size=r.randint(8, 40),
        num_hidden_layers=layers,
        num_attention_heads=r.choice([1, 1, 2, 3, 5]),
        q_lora_rank=r.choice([None, 8, 13]),
        kv_lora_rank=r.choice([4, 8, 11]),
        qk_nope_head_dim=r.choice([4, 7, 8]),
        qk_rope_head_dim=r.choice([2, 4, 8]),
        v_head_dim=r.choice([4, 5, 8]),
        intermediate_size=r.randint(3, 20),
        moe_intermediate_size=r.randint(2, 12),
        first_k_dense_replace=r.randint(0, layers),
        n_routed_experts=experts,
        n_shared_experts=r.choice([0, 1, 2]),
        num_experts_per_tok=r.randint(1, max(1, kept * members if groups else experts)),
        topk_method="group_limited_greedy" if groups else "greedy",
        n_group=max(groups, 1),
        topk_group=kept,
        norm_topk_prob=r.random() < 0.4,
        tie_word_embeddings=r.random() < 0.3,
        rms_norm_eps=r.choice([1e-6, 1e-5]),
        rope=r.choice([RopeConfig(), BASE.rope, replace(BASE.rope, mscale_all_dim=0.0)]),
    )


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("seed", range(16))
def test_a_random_member_is_fused_and_computes_the_same(seed, phase):
    config = member(seed)
    text = program_text(export(config, phase, torch.float64))
    before = outputs(parse_program(text, config, phase))
    for form in FORMS:
        program = parse_program(text, config, phase)
        passes = pipeline(forms={phase: form})
        records = run(program, passes)
        check_lowerable(program)
        assert {r.name: r.matches for r in records if r.expected is not None} == promised(config), config
        assert difference(before, outputs(program)) <= sum(p.tolerance for p in passes), config
