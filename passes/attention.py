"""MLA attention over the cache as one operator, in the expanded form the reference writes."""

from __future__ import annotations

from typing import Any

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite
from dsv2_compile.passes.match import Call, Match, Var, item, two
from dsv2_compile.program import CONTEXT, Program

_ATEN = torch.ops.aten


def _visible(decode: bool) -> Call:
    """cached position j < past, new position t <= s; the only mask the operator means."""
    batch, tokens = Var("batch"), (1 if decode else Var("tokens"))
    context = Var("context", lambda n: getattr(n, "meta", {}).get("sym") == CONTEXT, "the size context")
    old = Call(_ATEN.lt.Tensor, (Call(_ATEN.arange.default, (context,)), _per(Var("past"), 1)))
    old = Call(_ATEN.expand.default, (_per(old, 1), [batch, tokens, context]))
    ones = Call(_ATEN.ones.default, ([tokens, tokens],), {"dtype": torch.bool})
    new = Call(_ATEN.expand.default, (Call(_ATEN.tril.default, (ones,)), [batch, tokens, tokens]))
    return Call(_ATEN.cat.default, ([old, new], -1))


def _per(x: Any, axis: int) -> Call:
    return Call(_ATEN.unsqueeze.default, (x, axis))


def pattern(decode: bool) -> Call:
    # the operator hides the positions of its cache that the mask hides: the two must be the same ones
    cache = Var("cache", lambda n: n.meta["spec"].shape[1] == CONTEXT, "[batch, context, ...]")
    kv = Call(_ATEN.cat.default, ([cache, Var("rows")], 1))
    parts = Call(_ATEN.split_with_sizes.default, (kv, two("latent_rope"), -1))
    up = Call(_ATEN.linear.default, (item(parts, 0), Var("w_kv")))
    up = Call(_ATEN.view.default, (up, [Var("batch"), Var("total"), Var("heads"), -1]))
    heads = Call(_ATEN.split_with_sizes.default, (up, two("nope_v"), -1))
    k_pe = Call(
        _ATEN.expand.default, (_per(item(parts, 1), 2), [Var("batch"), Var("total"), Var("heads"), Var("rope")])
    )
    k = Call(_ATEN.cat.default, ([item(heads, 0), k_pe], -1))
    scores = Call(_ATEN.einsum.default, ("bshd,bthd->bhst", [Var("q"), k]))
    scores = Call(_ATEN.mul.Tensor, (scores, Var("scale", lambda v: isinstance(v, float), "a number")))
    hidden = Call(_ATEN.bitwise_not.default, (_per(_visible(decode), 1),))
    p = Call(_ATEN.softmax.int, (Call(_ATEN.masked_fill.Scalar, (scores, hidden, float("-inf"))), -1))
    return Call(_ATEN.einsum.default, ("bhst,bthv->bshv", [p, item(heads, 1)]))


@register
class Attention(Pass):
    """softmax(scale * q K^T + mask) V with K and V expanded per head from cat(cache, rows), and exactly
    the mask (j < past, causal among the new) -> mla_expanded(q, cache, rows, w_kv, past, scale, v_dim)."""

    name = "attention"
    requires = ("canonicalise", "rope", "cache_rows")

    def expected(self, config: ModelConfig, phase: str) -> int:
        return config.num_hidden_layers

    def apply(self, program: Program) -> Outcome:
        def change(m: Match) -> None:
            args = (m["q"], m["cache"], m["rows"], m["w_kv"], m["past"], m["scale"], m["nope_v"][1])
            replace(m.root, call(program, m.root, torch.ops.dsv2.mla_expanded.default, *args))

        return rewrite(program, pattern(program.phase == "decode"), change)
