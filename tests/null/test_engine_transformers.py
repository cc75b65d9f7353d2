"""Whole engines against transformers' own DeepSeek-V2: its checkpoints, its logits, its greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv2_compile.pipeline import build
from dsv2_compile.request import BuildRequest
from dsv2_compile.runtime import Engine
from tests.oracles import CONFIGS, parameters, run_settings, their_logits, transformers_checkpoint

STEPS = 32
TOLERANCE = 1e-4
GREEDY = 256


@pytest.fixture(scope="module", params=parameters(CONFIGS))
def pair(request, tmp_path_factory):
    """(transformers' model, an engine compiled from what it saved, the name of the configuration)."""
    root = tmp_path_factory.mktemp(request.param)
    positions = CONFIGS[request.param].get("max_position_embeddings", 512)
    theirs, _, _ = transformers_checkpoint(request.param, root / "checkpoint", max_position_embeddings=positions)
    report = build(BuildRequest(str(root / "checkpoint"), root / "engine", max_batch_size=3))
    assert report.verification is not None
    assert report.verification.passed, report.verification.text()
    with Engine.load(report.engine) as engine:
        yield theirs, engine, request.param


def test_prefill_and_32_decode_steps(pair):
    theirs, engine, name = pair
    batch, prompt = run_settings(name)
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(2, engine.config.vocab_size, (batch, prompt), generator=g)
    lengths = [prompt - 7 * b for b in range(batch)]
    forced = torch.randint(2, engine.config.vocab_size, (batch, STEPS), generator=g)
    expected = their_logits(theirs, tokens, lengths, forced).numpy()
    with engine.session(batch, prompt + STEPS) as session:
        ours = [session.prefill(tokens.numpy(), lengths)]
        ours += [session.decode(forced[:, i].numpy()) for i in range(STEPS)]
    error = np.linalg.norm(np.stack(ours, 1) - expected) / np.linalg.norm(expected)
    assert error < TOLERANCE, f"{name}: {error:.2e}"


def test_256_greedy_tokens(pair):
    theirs, engine, name = pair
    prompt = torch.randint(2, engine.config.vocab_size, (1, 9), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        made = theirs.generate(prompt, max_new_tokens=GREEDY, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = made[0, 9:].tolist()
    tokens = []
    with engine.session(1, 9 + GREEDY) as session:
        logits = session.prefill(prompt.numpy(), [9])
        for _ in range(GREEDY):
            tokens.append(int(logits[0].argmax()))
            logits = session.decode(tokens[-1:]) if len(tokens) < GREEDY else logits
    first = next((i for i, t in enumerate(tokens) if t != expected[i]), None)
    assert tokens == expected, f"{name}: first difference at {first}"
