"""The reference against transformers' own DeepSeek-V2, over checkpoints that transformers wrote."""

from __future__ import annotations

import pytest
import torch

from tests.oracles import CONFIGS, our_greedy, prefill_and_decode, transformers_checkpoint


@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_and_decode_equal_transformers(name, tmp_path):
    theirs, config, weights = transformers_checkpoint(name, tmp_path)
    expected, ours = prefill_and_decode(theirs, config, weights, steps=32)
    error = (expected - ours).norm() / expected.norm()
    assert error < 1e-5, f"{name}: {error:.2e}"
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("name", ["v2", "lite"])
def test_256_greedy_tokens_equal_transformers(name, tmp_path):
    theirs, config, weights = transformers_checkpoint(name, tmp_path)
    prompt = torch.randint(2, config.vocab_size, (1, 9))
    expected = theirs.generate(prompt, max_new_tokens=256, do_sample=False, eos_token_id=None)[0, 9:].tolist()
    assert our_greedy(config, weights, prompt, 256) == expected
