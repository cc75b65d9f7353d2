"""The routed experts as one sparse operator."""

from __future__ import annotations

import operator

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite
from dsv2_compile.passes.match import Call, Match, Var, item
from dsv2_compile.program import Program

_ATEN = torch.ops.aten

_UP = Call(_ATEN.einsum.default, ("bsd,ejd->bsej", [Var("x"), Var("gate_up")]))
_HALVES = Call(_ATEN.chunk.default, (_UP, 2, -1))
_ACT = Call(_ATEN.mul.Tensor, (Call(_ATEN.silu.default, (item(_HALVES, 0),)), item(_HALVES, 1)))
_DOWN = Call(_ATEN.einsum.default, ("bsei,edi->bsed", [_ACT, Var("down")]))
_ZEROS = Call(_ATEN.new_zeros.default, (Var("like"), Var("shape")))
_GATE = Var("gate", lambda v: getattr(v, "target", None) is torch.ops.dsv2.gate.default, "dsv2.gate")
_IDS = Call(operator.getitem, (_GATE, 0), name="ids")  # of a gate, so no id stands twice in a row
_DENSE = Call(_ATEN.scatter.src, (_ZEROS, -1, _IDS, Call(operator.getitem, (_GATE, 1), name="weights")))
PATTERN = Call(
    _ATEN.sum.dim_IntList, (Call(_ATEN.mul.Tensor, (_DOWN, Call(_ATEN.unsqueeze.default, (_DENSE, 3)))), [-2])
)


@register
class Experts(Pass):
    """sum_e dense[e] * expert_e(x), with dense zero outside the k chosen ids, -> the sum over those k.

    The dropped terms are exact zeros; what remains is added in another order.
    """

    name = "experts"
    tolerance = 1e-12
    requires = ("canonicalise", "gate")

    def expected(self, config: ModelConfig, phase: str) -> int:
        return sum(config.is_moe(i) for i in range(config.num_hidden_layers))

    def apply(self, program: Program) -> Outcome:
        def change(m: Match) -> None:
            args = (m["x"], m["ids"], m["weights"], m["gate_up"], m["down"])
            replace(m.root, call(program, m.root, torch.ops.dsv2.experts.default, *args))

        return rewrite(program, PATTERN, change)
