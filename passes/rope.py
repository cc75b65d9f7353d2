"""Rotary embedding of the queries as one operator."""

from __future__ import annotations

from typing import Any

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite
from dsv2_compile.passes.match import Call, Match, Var, item, two
from dsv2_compile.program import Program

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2
_END = 2**63 - 1


def rotated(x: Any, cos: Any, sin: Any, axis: int) -> Call:
    """The interleaved rotation of ``x`` along ``axis``, its last, as the reference writes it."""

    def half(start: int) -> Call:
        return Call(_ATEN.slice.Tensor, (x, axis, start, _END, 2))

    def mul(a: Any, b: Any) -> Call:
        return Call(_ATEN.mul.Tensor, (a, b))

    even, odd = half(0), half(1)
    pair = [
        Call(_ATEN.sub.Tensor, (mul(even, cos), mul(odd, sin))),
        Call(_ATEN.add.Tensor, (mul(odd, cos), mul(even, sin))),
    ]
    return Call(_ATEN.flatten.using_ints, (Call(_ATEN.stack.default, (pair, -1)), -2))


def halves(x: str) -> tuple[Call, Call]:
    parts = Call(_ATEN.split_with_sizes.default, (Var(x), two("sizes"), -1))
    return item(parts, 0), item(parts, 1)


def _per_head(name: str) -> Call:
    return Call(_ATEN.unsqueeze.default, (Var(name), 2))


_Q_NOPE, _Q_PE = halves("q")
QUERY = Call(_ATEN.cat.default, ([_Q_NOPE, rotated(_Q_PE, _per_head("cos"), _per_head("sin"), 3)], -1))


@register
class Rope(Pass):
    """cat(q_nope, rotate(q_pe, cos, sin)) -> rope(q, cos, sin, nope), one per layer."""

    name = "rope"
    requires = ("canonicalise",)

    def expected(self, config: ModelConfig, phase: str) -> int:
        return config.num_hidden_layers

    def apply(self, program: Program) -> Outcome:
        def change(m: Match) -> None:
            replace(m.root, call(program, m.root, _DSV2.rope.default, m["q"], m["cos"], m["sin"], m["sizes"][0]))

        return rewrite(program, QUERY, change)
