"""Native plans, executed on the host launch by launch, against transformers on checkpoints that it wrote."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.plan.check import problems
from dsv2_compile.runtime.native.model import NativeModel
from dsv2_compile.runtime.session import Session
from tests import host_plans, oracles

NAMES = [name for name in oracles.CONFIGS if name != "yarn_far"]
"""The far one takes hours launch by launch."""
LENGTHS, STEPS, POSITIONS = (9, 4, 1), 4, 128


@pytest.fixture(scope="module", params=oracles.parameters(NAMES))
def case(request, tmp_path_factory) -> tuple[Any, Any]:
    """transformers' model, and our engine of its checkpoint on the host."""
    path = tmp_path_factory.mktemp(request.param) / "checkpoint"
    model, config, _ = oracles.transformers_checkpoint(request.param, path)
    return model, host_plans.host_engine(config, Checkpoint.open(path), positions=POSITIONS)


def close(actual: np.ndarray, expected: torch.Tensor) -> None:
    error = np.abs(actual - expected.numpy()).max() / float(expected.abs().max())
    assert error < 2e-5, error


def session(engine: Any) -> Session:
    pages = len(LENGTHS) * POSITIONS // engine.plan.page
    model = NativeModel(engine.plan, engine.executor, pages)
    return Session(cast(Any, engine), len(LENGTHS), POSITIONS, model.store(engine, len(LENGTHS), POSITIONS))


def test_prefill_and_decode_of_a_ragged_batch(case):
    """Prompts in one call, then a token for each; sequences in scattered pages, one slot used again."""
    model, engine = case
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, engine.config.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=rng)
    steps = torch.randint(2, engine.config.vocab_size, (len(LENGTHS), STEPS), generator=rng)
    expected = oracles.their_logits(model, tokens, list(LENGTHS), steps)
    with session(engine) as s:
        s.prefill(tokens[:1], [3], [1])
        s.free([1])
        close(s.prefill(tokens, LENGTHS), expected[:, 0])
        for i in range(STEPS):
            close(s.decode(steps[:, i]), expected[:, i + 1])


def test_a_long_prefix_is_extended(case):
    """Past what `prefill` takes at once: the program that reads the cache absorbed, over a page's end."""
    model, engine = case
    config = engine.config
    ids = torch.randint(2, config.vocab_size, (1, 75), generator=torch.Generator().manual_seed(2))
    with session(engine) as s, torch.no_grad():
        expected = model(ids, use_cache=False).logits[0].float()
        s.prefill(ids[:, :60], [60])
        whole, ran, run = engine.plan.programs["prefill"].limits, [], engine.executor.run
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(whole, "context", 64)
            patch.setattr(engine.executor, "run", lambda name, *rest: ran.append(name) or run(name, *rest))
            close(s.extend(ids[:, 60:], [15]), expected[74:])
        assert ran == ["extend"]


def test_every_plan_passes_its_own_checks(case):
    assert list(problems(case[1].plan)) == []
