"""silu(gate) * up on the halves of one projection as one operator."""

from __future__ import annotations

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite
from dsv2_compile.passes.match import Call, Match, Var, item
from dsv2_compile.program import Program

_ATEN = torch.ops.aten
_EQUAL = Var("sizes", lambda v: len(v) == 2 and v[0] == v[1], "two equal sizes")
_HALVES = Call(_ATEN.split_with_sizes.default, (Var("gate_up"), _EQUAL, -1))
PATTERN = Call(_ATEN.mul.Tensor, (Call(_ATEN.silu.default, (item(_HALVES, 0),)), item(_HALVES, 1)))


@register
class SwiGlu(Pass):
    """silu(h[:I]) * h[I:] -> swiglu(h): the dense MLPs and the shared experts."""

    name = "swiglu"
    requires = ("merge_projections",)

    def expected(self, config: ModelConfig, phase: str) -> int:
        layers = range(config.num_hidden_layers)
        return sum(not config.is_moe(i) or config.n_shared_experts > 0 for i in layers)

    def apply(self, program: Program) -> Outcome:
        def change(m: Match) -> None:
            replace(m.root, call(program, m.root, torch.ops.dsv2.swiglu.default, m["gate_up"]))

        return rewrite(program, PATTERN, change)
