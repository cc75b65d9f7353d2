"""The reference against transformers' own DeepSeek-V2, over checkpoints that transformers wrote."""

from __future__ import annotations

import math

import pytest
import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.model import reference
from tests.oracles import CONFIGS, our_greedy, prefill_and_decode, transformers_checkpoint
from tests.toy_engine import CONFIG


@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_and_decode_equal_transformers(name, tmp_path):
    theirs, config, weights = transformers_checkpoint(name, tmp_path)
    expected, ours = prefill_and_decode(theirs, config, weights, steps=32)
    error = (expected - ours).norm() / expected.norm()
    assert error < 1e-5, f"{name}: {error:.2e}"
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("name", ["v2", "lite"])
def test_256_greedy_tokens_equal_transformers(name, tmp_path):
    theirs, config, weights = transformers_checkpoint(name, tmp_path, max_position_embeddings=512)
    prompt = torch.randint(2, config.vocab_size, (1, 9))
    expected = theirs.generate(prompt, max_new_tokens=256, do_sample=False, eos_token_id=None)[0, 9:].tolist()
    assert our_greedy(config, weights, prompt, 256) == expected


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_gate_is_the_published_formula(grouped, normalize):
    """transformers ignores norm_topk_prob: held to the formula written out, one token and one expert at a time."""
    experts, groups, kept, top, scale = 12, 4, 2, 3, 2.5
    config = ModelConfig.from_json(
        CONFIG.to_json()
        | dict(
            n_routed_experts=experts,
            num_experts_per_tok=top,
            topk_method="group_limited_greedy" if grouped else "greedy",
            n_group=groups if grouped else 1,
            topk_group=kept if grouped else 1,
            routed_scaling_factor=scale,
            norm_topk_prob=normalize,
        )
    )
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 40, 16, generator=g, dtype=torch.float64)
    gate = torch.randn(experts, 16, generator=g, dtype=torch.float64)
    ids, weights = reference.route(config, gate, x)
    for t in range(x.shape[1]):
        logits = [sum(float(a) * float(b) for a, b in zip(row, x[0, t], strict=True)) for row in gate]
        powers = [math.exp(v - max(logits)) for v in logits]
        share = [p / sum(powers) for p in powers]
        if grouped:
            size = experts // groups
            best = sorted(range(groups), key=lambda n: -max(share[n * size : (n + 1) * size]))[:kept]
            share = [s if e // size in best else 0.0 for e, s in enumerate(share)]
        chosen = sorted(range(experts), key=lambda e: -share[e])[:top]
        total = sum(share[e] for e in chosen) + 1e-20
        expected = [share[e] / total if normalize else share[e] * scale for e in chosen]
        assert ids[0, t].tolist() == chosen
        assert weights[0, t].tolist() == pytest.approx(expected, rel=1e-12)
