"""Bytes and FLOP of a program, per kind of operator, at given sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sympy
import torch
from torch import fx

from dsv2_compile.kernels.dialect import OPS, Cost, nbytes, numel
from dsv2_compile.passes.core import specs_of
from dsv2_compile.program import Program, TensorSpec

_LINEAR, _EMBEDDING = torch.ops.aten.linear.default, torch.ops.aten.embedding.default


@dataclass(frozen=True)
class OpCost:
    """All calls of one operator in a program: least bytes moved and FLOP at the given sizes."""

    op: str
    calls: int
    bytes: int
    flops: int


def node_cost(node: fx.Node) -> Cost:
    """Cost of one node as expressions; views cost nothing."""
    if node.target in OPS:
        return OPS[node.target].cost(*specs_of(node.args))
    spec = node.meta.get("spec")
    if not isinstance(spec, TensorSpec):
        return Cost(0, 0)
    if node.target is _LINEAR:
        x, w = (a.meta["spec"] for a in node.args)  # type: ignore[union-attr]
        return Cost(nbytes(x) + nbytes(w) + nbytes(spec), 2 * numel(x.shape) * w.shape[0])
    if node.target is _EMBEDDING:
        return Cost(2 * nbytes(spec), 0)
    if node.target in (torch.ops.aten.add.Tensor, torch.ops.aten.cat.default):
        return Cost(3 * nbytes(spec), numel(spec.shape))
    return Cost(0, 0)


def program_costs(program: Program, sizes: Mapping[str, int]) -> list[OpCost]:
    """Costs by operator, dearest first. ``sizes``: batch, tokens, context."""
    values = {sympy.Symbol(k, integer=True, nonnegative=True): v for k, v in sizes.items()}

    def number(d: Any) -> int:
        return int(d.subs(values)) if isinstance(d, sympy.Expr) else int(d)

    totals: dict[str, list[int]] = {}
    for node in program.nodes():
        if node.op != "call_function" or "spec" not in node.meta:
            continue
        cost = node_cost(node)
        row = totals.setdefault(op_name(node), [0, 0, 0])
        row[0] += 1
        row[1] += number(cost.bytes)
        row[2] += number(cost.flops)
    rows = [OpCost(op, *row) for op, row in totals.items()]
    return sorted(rows, key=lambda r: (-r.bytes, r.op))


def op_name(node: fx.Node) -> str:
    target = node.target
    return (
        str(target).removesuffix(".default")
        if hasattr(target, "overloadpacket")
        else getattr(target, "__name__", str(target))
    )


def program_report(program: Program, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What `inspect` shows of a program without torch: costs by operator and the sizes they hold at."""
    return {"sizes": dict(sizes), "operators": [asdict(r) for r in program_costs(program, sizes)]}
