"""The gate and the routed experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsv2_compile.backends.cuda.draft import ROWS, View, kernel
from dsv2_compile.backends.cuda.values import Lowering, Parts, Rule, args_of
from dsv2_compile.plan.plan import Pointer

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2


def _gate(low: Lowering, node: fx.Node) -> tuple[View, View]:
    """Choice of experts, and at once the order in which the grouped products take the rows."""
    x, w = low.view(args_of(node)[0]), low.view(args_of(node)[1])
    top_k, groups, topk_groups, scale, normalize = args_of(node)[2:]
    experts = w.height
    dims: dict[str, Any] = {
        "EXPERTS": experts,
        "K": w.width,
        "TOP_K": top_k,
        "GROUPS": groups,
        "TOPK_GROUPS": topk_groups,
        "SCALE": float(scale),
        "NORMALIZE": normalize,
        "ROWS_HINT": low.hint(ROWS),
    }
    ids = low.draft.temporary("ids", ROWS, int(top_k), "i32")
    weights = low.draft.temporary("weights", ROWS, int(top_k), "fp32")
    what = f"gate, {w.buffer}"
    low.draft.launch(kernel("gate"), dims, {"rows": ROWS}, what, x=x, w=w, ids=ids, weights=weights)
    offsets = low.draft.temporary("offsets", 1, experts + 1, "i32")
    order = low.draft.temporary("order", ROWS, int(top_k), "i32")
    dims = {"EXPERTS": experts, "TOP_K": top_k, "ROWS_HINT": low.hint(ROWS)}
    args = {"ids": ids, "offsets": offsets, "order": order}
    low.draft.launch(kernel("dispatch"), dims, {"rows": ROWS}, "order of the experts' rows", **args)
    low.shared[f"dispatch {ids.buffer}"] = (offsets, order)
    return ids, weights


def _experts(low: Lowering, node: fx.Node) -> Parts | View:
    x, ids, weights, up, down = (low.view(a) for a in args_of(node))
    offsets, order = low.shared[f"dispatch {ids.buffer}"]
    top_k = ids.width
    experts, inter, hidden = low.program.weights[down.buffer].shape[0], down.width, x.width
    common = {"EXPERTS": experts, "TOP_K": top_k, "ROWS_HINT": low.hint(ROWS)}
    sizes, moved = {"rows": ROWS}, {"offsets": offsets, "order": order}
    middle = low.draft.temporary("experts", ROWS * top_k, inter)
    dims = common | {"N": inter, "K": hidden}
    low.draft.launch(kernel("moe_up"), dims, sizes, f"experts, {up.buffer}", x=x, w=up, out=middle, **moved)
    out = low.draft.temporary("parts", ROWS * top_k, hidden)
    dims = common | {"N": hidden, "K": inter}
    args = {"x": middle, "w": down, "weights": weights, "out": out}
    low.draft.launch(kernel("moe_down"), dims, sizes, f"experts, {down.buffer}", **args, **moved)
    parts = Parts(out, top_k)
    return parts if _is_added(node) else combine(low, parts, None)


def _is_added(node: fx.Node) -> bool:
    """Its only reader adds what the shared experts give."""
    users = list(node.users)
    return len(users) == 1 and users[0].target is _ATEN.add.Tensor and users[0].args[0] is node


def combine(low: Lowering, parts: Parts, shared: View | None) -> View:
    dims = {"N": parts.of.width, "TOP_K": parts.top_k, "SHARED": shared is not None}
    out = low.draft.temporary("moe", ROWS, parts.of.width)
    args: dict[str, View | Pointer | None] = {"parts": parts.of, "shared": shared, "out": out}
    low.draft.launch(kernel("moe_combine"), dims, {"rows": ROWS}, "sum of the experts", **args)
    return out


RULES: dict[Any, Rule] = {_DSV2.gate.default: _gate, _DSV2.experts.default: _experts}
