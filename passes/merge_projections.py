"""Linears that read the same value become one: q_a (or q) with kv_a, gate with up."""

from __future__ import annotations

import torch
from torch import fx

from dsv2_compile.config import ModelConfig
from dsv2_compile.passes.core import Outcome, Pass, aten, register, replace, split, sweep, weight
from dsv2_compile.passes.match import Call, Match, Miss, Var, match, weight_node
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.weights import Concat

_LINEAR = torch.ops.aten.linear.default
_PLAIN = Call(_LINEAR, (Var("x"), weight_node("w")))  # no bias


def _common_prefix(names: list[str]) -> str:
    parts = zip(*(n.split(".") for n in names), strict=False)
    return ".".join(p[0] for p in parts if len(set(p)) == 1 and p[0] != "weight")


@register
class MergeProjections(Pass):
    """x W1^T and x W2^T -> split(x [W1; W2]^T): the same dot products, one reading of x, one launch.

    The products are the same sums; a matrix library may add them in another order for another width.
    """

    name = "merge_projections"
    tolerance = 1e-13
    requires = ("canonicalise", "gate", "experts", "absorb")

    def expected(self, config: ModelConfig, phase: str) -> int:
        layers = range(config.num_hidden_layers)
        mlps = sum(not config.is_moe(i) or config.n_shared_experts > 0 for i in layers)
        return config.num_hidden_layers + mlps

    def apply(self, program: Program) -> Outcome:
        by_input: dict[fx.Node, list[fx.Node]] = {}
        miss: Miss | None = None
        for node in program.nodes(_LINEAR):
            got = match(_PLAIN, node)
            if isinstance(got, Match):
                by_input.setdefault(got["x"], []).append(node)
            else:
                miss = got
        groups = [g for g in by_input.values() if len(g) > 1]
        if miss is None:
            for node in (g[0] for g in by_input.values() if len(g) == 1):
                miss = Miss(node, 1, f"argument 0 of {node.name}", "read by another linear", str(node.args[0]))
                break
        for group in groups:
            self._merge(program, group)
        sweep(program)
        return Outcome(len(groups), miss=miss)

    @staticmethod
    def _merge(program: Program, group: list[fx.Node]) -> None:
        x, first = group[0].args[0], group[0]
        names = [str(n.all_input_nodes[1].target) for n in group]
        leaf = "_".join(n.removesuffix(".weight").split(".")[-1] for n in names)
        recipe = Concat(tuple(program.weights[n] for n in names))
        spec: TensorSpec = first.meta["spec"]
        w = weight(program, f"{_common_prefix(names)}.{leaf}.weight", recipe, spec.dtype)
        merged = aten(program, first, _LINEAR, TensorSpec((*spec.shape[:-1], recipe.shape[0]), spec.dtype), x, w)
        for node, part in zip(
            group, split(program, first, merged, [n.meta["spec"].shape[-1] for n in group]), strict=True
        ):
            replace(node, part)
