"""RMSNorm as one operator."""

from __future__ import annotations

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite
from dsv2_compile.passes.match import Call, Match, Var, weight_node
from dsv2_compile.program import Program

_ATEN = torch.ops.aten
X = Var("x")
PATTERN = Call(
    _ATEN.mul.Tensor,
    (
        weight_node("weight"),
        Call(
            _ATEN.mul.Tensor,
            (
                X,
                Call(
                    _ATEN.rsqrt.default,
                    (
                        Call(
                            _ATEN.add.Tensor,
                            (
                                Call(_ATEN.mean.dim, (Call(_ATEN.pow.Tensor_Scalar, (X, 2)), [-1], True)),
                                Var("eps", lambda v: isinstance(v, float), "a number"),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    ),
)


@register
class RmsNorm(Pass):
    """weight * (x * rsqrt(mean(x^2) + eps)) -> rms_norm(x, weight, eps). Same operations, same order."""

    name = "rms_norm"
    requires = ("canonicalise",)

    def expected(self, config: ModelConfig, phase: str) -> int:
        return config.num_hidden_layers * (3 if config.q_lora_rank is None else 4) + 1

    def apply(self, program: Program) -> Outcome:
        def change(m: Match) -> None:
            replace(m.root, call(program, m.root, torch.ops.dsv2.rms_norm.default, m["x"], m["weight"], m["eps"]))

        return rewrite(program, PATTERN, change)
