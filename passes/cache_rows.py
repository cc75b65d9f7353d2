"""Latent norm, rotary embedding of the shared key and the new cache row as one operator."""

from __future__ import annotations

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite
from dsv2_compile.passes.match import Call, Match, Var
from dsv2_compile.passes.rope import halves, rotated
from dsv2_compile.program import Program

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2

_LATENT, _K_PE = halves("kv")
_NORM = Call(_DSV2.rms_norm.default, (_LATENT, Var("weight"), Var("eps")))
ROWS = Call(_ATEN.cat.default, ([_NORM, rotated(_K_PE, Var("cos"), Var("sin"), 2)], -1))


@register
class CacheRows(Pass):
    """cat(rms_norm(kv[:L]), rotate(kv[L:])) -> latent_rope(kv, weight, cos, sin, eps): the new cache row."""

    name = "cache_rows"
    requires = ("canonicalise", "rms_norm")

    def expected(self, config: ModelConfig, phase: str) -> int:
        return config.num_hidden_layers

    def apply(self, program: Program) -> Outcome:
        def change(m: Match) -> None:
            args = (m["kv"], m["weight"], m["cos"], m["sin"], m["eps"])
            replace(m.root, call(program, m.root, _DSV2.latent_rope.default, *args))

        return rewrite(program, ROWS, change)
