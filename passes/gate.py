"""Softmax gate, greedy or group-limited, as one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import PassError
from dsv2_compile.passes.core import Outcome, Pass, call, register, replace, rewrite, take
from dsv2_compile.passes.match import Call, Match, Var, item
from dsv2_compile.program import Program

_ATEN = torch.ops.aten


def _sorted(x: Any) -> Call:
    return Call(_ATEN.sort.stable, (x,), {"stable": True, "descending": True})


def _top(x: Any, count: str, of: int, kept: int) -> Any:
    """The first ``count``; export leaves out the slice where that is all of them."""
    return x if kept == of else Call(_ATEN.slice.Tensor, (x, 2, 0, Var(count)))


def _scores(c: ModelConfig) -> Call:
    scores = Call(_ATEN.softmax.int, (Call(_ATEN.linear.default, (Var("x"), Var("w"))), -1))
    if not c.grouped:
        return scores
    groups = Call(_ATEN.unflatten.int, (scores, -1, [Var("n_group"), -1]))
    best = item(_sorted(Call(_ATEN.amax.default, (groups, [-1]))), 1)
    zeros = Call(_ATEN.zeros_like.default, (Call(_ATEN.select.int, (groups, 3, 0)),))
    kept = Call(_ATEN.scatter.value, (zeros, -1, _top(best, "topk_group", c.n_group, c.topk_group), 1.0))
    return Call(
        _ATEN.flatten.using_ints, (Call(_ATEN.mul.Tensor, (groups, Call(_ATEN.unsqueeze.default, (kept, 3)))), -2)
    )


def pattern(c: ModelConfig, normalize: bool) -> Call:
    """The expert weights; the ids hang on the same sort node, captured as ``sorted``."""
    order = _sorted(_scores(c))
    order = Call(order.target, order.args, order.kwargs, name="sorted")
    top = _top(item(order, 0), "top_k", c.n_routed_experts, c.num_experts_per_tok)
    if normalize:
        total = Call(_ATEN.sum.dim_IntList, (top, [-1], True))
        return Call(_ATEN.div.Tensor, (top, Call(_ATEN.add.Tensor, (total, 1e-20))))
    return Call(_ATEN.mul.Tensor, (top, Var("scale", lambda v: isinstance(v, float), "a number")))


@register
class Gate(Pass):
    """softmax(x W^T) over all experts, optional group limit (scores outside the best groups become 0),
    stable descending sort, first k, then either scaled or renormalised -> gate(x, w, ...): (ids, weights)."""

    name = "gate"
    requires = ("canonicalise",)

    def expected(self, config: ModelConfig, phase: str) -> int:
        return sum(config.is_moe(i) for i in range(config.num_hidden_layers))

    def apply(self, program: Program) -> Outcome:
        c = program.config
        normalize = c.norm_topk_prob and c.num_experts_per_tok > 1

        def change(m: Match) -> None:
            top_k = m.captures.get("top_k", c.n_routed_experts)
            groups = (m["n_group"], m.captures.get("topk_group", c.n_group)) if c.grouped else (1, 1)
            scale = 1.0 if normalize else m["scale"]
            args = (m["x"], m["w"], top_k, *groups, scale, normalize)
            node = call(program, m["sorted"], torch.ops.dsv2.gate.default, *args)
            replace(_ids(m["sorted"], m.captures.get("top_k")), take(program, m["sorted"], node, 0))
            replace(m.root, take(program, m["sorted"], node, 1))

        return rewrite(program, pattern(c, normalize), change)


def _ids(order: fx.Node, top_k: int | None) -> fx.Node:
    """The first k indices of the sort; all of them with None."""
    for indices in order.users:
        if indices.args[1] == 1 and top_k is None:
            return indices
        for top in indices.users if indices.args[1] == 1 else ():
            if top.target is _ATEN.slice.Tensor and top.args[1:] == (2, 0, top_k):
                return top
    raise PassError(
        f"{order.name} sorts router scores but no one takes its first {top_k} indices",
        "the graph was not exported from this reference, or an earlier pass changed it",
    )
