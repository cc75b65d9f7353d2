"""NaN where nothing reads it is no failure, and NaN where something does is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import NumericError
from dsv2_compile.runtime.ort import Program as Loaded
from dsv2_compile.verify import golden
from dsv2_compile.verify import plan as plans
from dsv2_compile.verify.check import check
from dsv2_compile.verify.golden import Golden
from dsv2_compile.verify.report import Report
from dsv2_compile.weights import Recipe
from tests.small_engine import BATCH, POSITIONS, SMALL, Spoil, Weights, build

NAN = float("nan")
UNUSED = 5
"""An expert that no token chooses."""


def plan_without(*tokens: int) -> plans.Plan:
    """A plan that feeds none of ``tokens``."""
    for seed in range(200):
        plan = plans.make(SMALL, BATCH, POSITIONS, seed)
        if not {t for s in plan.tokens for t in s} & set(tokens):
            return plan
    raise AssertionError("every plan has them")


def golden_of(source: Weights, plan: plans.Plan, config: ModelConfig = SMALL) -> Golden:
    return golden.compute(config, source, "float32", plan)


def expert(source: Weights, layer: int, number: int) -> list[torch.Tensor]:
    prefix = f"model.layers.{layer}.mlp.experts.{number}."
    return [t for name, t in source.tensors.items() if name.startswith(prefix)]


def never_chosen(source: Weights, layer: int, number: int) -> None:
    """The router of ``layer`` gives expert ``number`` less than any other: hidden value 0 is large in every token."""
    source.tensors["model.embed_tokens.weight"][:, 0] = 40.0
    gate = source.tensors[f"model.layers.{layer}.mlp.gate.weight"]
    gate[number] = 0.0
    gate[:, 0] = 0.0
    gate[number, 0] = -60.0


@dataclass(frozen=True)
class WithNan(Recipe):
    """``of`` with NaN in some of its rows."""

    of: Recipe
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def pieces(self, source: Any, dtype: torch.dtype) -> Any:
        t = self.of.evaluate(source, dtype).clone()
        t[self.start : self.stop] = NAN
        yield t


def unused_expert(folder: Any, layer: int) -> Report:
    source = Weights(SMALL)
    never_chosen(source, layer, UNUSED)
    for t in expert(source, layer, UNUSED):
        t.fill_(NAN)
    return check(build(folder, source=source), SMALL, golden_of(source, plan_without()), "nan")


def unused_token(folder: Any, token: int) -> Report:
    """Token 0 is what padding could be made of."""
    source = Weights(SMALL)
    source.tensors["model.embed_tokens.weight"][token] = NAN
    return check(build(folder, source=source), SMALL, golden_of(source, plan_without(token)), "nan")


def unused_angles(folder: Any) -> Report:
    """The rows of the rotary tables that no valid position and no padding reaches."""
    spoil = Spoil(recipe={f"rope.{f}": lambda r: WithNan(r, 45, 90) for f in ("cos", "sin")})
    source = Weights(SMALL)
    return check(build(folder, spoil=spoil), SMALL, golden_of(source, plan_without()), "nan")


def padded_rows(folder: Any) -> Report:
    """A program that leaves its padded rows unwritten."""
    plain = Loaded.run

    def run(self: Loaded, tokens: Any, past: Any, lengths: Any, caches: Any) -> Any:
        logits, rows = plain(self, tokens, past, lengths, caches)
        rows[:, np.arange(tokens.shape[1])[None] >= lengths[:, None]] = NAN
        return logits, rows

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Loaded, "run", run)
        return check(build(folder), SMALL, golden_of(Weights(SMALL), plan_without()), "nan")


HARMLESS: dict[str, Callable[[Any], Report]] = {
    "expert of the first MoE layer that no token chooses": lambda folder: unused_expert(folder, 1),
    "expert of the last layer that no token chooses": lambda folder: unused_expert(folder, 3),
    "token that is not fed": lambda folder: unused_token(folder, 50),
    "token that padding could be made of": lambda folder: unused_token(folder, 0),
    "angles of positions that are not reached": unused_angles,
    "padded rows": padded_rows,
}


@pytest.mark.parametrize("what", HARMLESS)
def test_nan_that_nothing_reads_is_no_failure(what, tmp_path):
    report = HARMLESS[what](tmp_path)
    assert report.problems == []
    assert (report.padding_nan > 0) == (what == "padded rows")


def test_nan_in_an_expert_that_is_used_is_a_failure_that_names_its_layer(tmp_path):
    source = Weights(SMALL)
    good = golden_of(source, plan_without())
    for t in expert(source, 1, UNUSED):
        t.fill_(NAN)
    report = check(build(tmp_path, source=source), SMALL, good, "nan")
    first = report.findings[0]
    assert (first.layer, first.suspects) == (2, (1, 2))
    assert " NaN, 0 infinite)" in first.what
    assert report.repeatable is None
    with pytest.raises(NumericError, match="rows of layer 2 are off"):
        report.require()
    assert "NaN" not in str(report.to_json()["sections"])
    assert report.summary()["worst"]["rel_l2_p95"] is None or report.summary()["worst"]["rel_l2_p95"] > 0


def test_infinity_is_a_failure_too(tmp_path):
    source = Weights(SMALL)
    good = golden_of(source, plan_without())
    source.tensors["lm_head.weight"][7] = float("inf")
    report = check(build(tmp_path, source=source), SMALL, good, "inf")
    assert report.findings[0].layer is None
    assert not report.passed


def test_a_checkpoint_of_nan_cannot_pass_with_an_engine_of_nan(tmp_path):
    """Oracle, eager mode and engine agree on NaN; that is not agreement."""
    source = Weights(SMALL)
    source.tensors["model.layers.2.self_attn.o_proj.weight"][3, 4] = NAN
    report = check(build(tmp_path, source=source), SMALL, golden_of(source, plan_without()), "nan")
    assert not report.passed
    assert report.findings[0].layer == 3


def test_the_oracle_reads_no_expert_that_no_token_chooses():
    source = Weights(SMALL)
    never_chosen(source, 2, UNUSED)
    read: list[str] = []
    plain = source.tensor
    source.tensor = lambda name: (read.append(name), plain(name))[1]  # type: ignore[method-assign]
    golden_of(source, plan_without())
    experts = {int(name.split(".")[5]) for name in read if ".layers.2.mlp.experts." in name}
    assert UNUSED not in experts
    assert len(experts) >= SMALL.num_experts_per_tok


def test_the_config_of_these_tests_pads_some_rows():
    """Or the tests above would prove nothing about padding."""
    assert len(set(plan_without().prompts[:BATCH])) == BATCH
