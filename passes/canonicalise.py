"""Remove what export leaves behind: no-op casts and slices, repeated values, many names for one size."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsv2_compile.passes.core import Outcome, Pass, register, sweep
from dsv2_compile.program import Program

_ATEN = torch.ops.aten
_END = 2**63 - 1


def _same(node: fx.Node) -> Any:
    """The argument this node merely repeats, or None."""
    t: Any = node.target
    a: tuple[Any, ...] = node.args
    if t is _ATEN.to.dtype and a[0].meta["spec"] == node.meta["spec"]:
        return a[0]
    if t is _ATEN.slice.Tensor and tuple(a[2:]) == (0, _END):
        return a[0]
    if t in (_ATEN.alias.default, _ATEN.detach.default, _ATEN.contiguous.default):
        return a[0]
    return None


def _key(node: fx.Node) -> Any:
    """Equal keys are equal values; sizes are equal when their expressions are."""
    if "sym" in node.meta:
        return ("sym", node.meta["sym"])

    def frozen(v: Any) -> Any:
        if isinstance(v, (list, tuple)):
            return tuple(map(frozen, v))
        return (type(v), repr(v) if isinstance(v, float) else v)  # 0.0 == -0.0, but they are two values

    return (node.target, frozen(node.args), tuple((k, frozen(v)) for k, v in sorted(node.kwargs.items())))


@register
class Canonicalise(Pass):
    """Identity: x.to(its own dtype), and x[0:end] are x, and equal calls of pure
    operators are one value. Sizes written as expressions of batch, tokens and context are one node each,
    a size that is a known number becomes that number."""

    name = "canonicalise"

    def apply(self, program: Program) -> Outcome:
        seen: dict[Any, fx.Node] = {}
        changed = 0
        for node in list(program.nodes()):
            if node.op != "call_function":
                continue
            same = _same(node)
            if same is None:
                known = seen.setdefault(_key(node), node)
                same = known if known is not node else None
            if isinstance(node.meta.get("sym"), int):
                same = node.meta["sym"]
            if same is not None:
                node.replace_all_uses_with(same)
                program.graph.erase_node(node)
                changed += 1
        return Outcome(changed + sweep(program))
