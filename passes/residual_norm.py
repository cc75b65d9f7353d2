"""Residual add and the RMSNorm that follows it as one operator."""

from __future__ import annotations

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite, take
from dsv2_compile.passes.match import Call, Match, Var
from dsv2_compile.program import Program

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2
PATTERN = Call(
    _DSV2.rms_norm.default,
    (Call(_ATEN.add.Tensor, (Var("residual"), Var("x")), name="total"), Var("weight"), Var("eps")),
)


@register
class ResidualNorm(Pass):
    """rms_norm(residual + x) -> add_rms_norm(x, residual): (normed, sum). Every norm but the first and,
    where a token is picked before it, the last."""

    name = "residual_norm"
    requires = ("rms_norm",)

    def expected(self, config: ModelConfig, phase: str) -> int:
        return 2 * config.num_hidden_layers - 1

    def apply(self, program: Program) -> Outcome:
        def change(m: Match) -> None:
            at = m["total"]
            node = call(program, at, _DSV2.add_rms_norm.default, m["x"], m["residual"], m["weight"], m["eps"])
            normed, total = take(program, at, node, 0), take(program, at, node, 1)
            replace(m.root, normed)
            replace(at, total)

        return rewrite(program, PATTERN, change)
