"""Embedding, norms, linear layers, the choice of the next tokens, and the nodes that only say where things are."""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from dsv2_compile.backends.cuda.draft import BATCH, ROWS, View, kernel
from dsv2_compile.backends.cuda.rules_moe import combine
from dsv2_compile.backends.cuda.values import (
    Deferred,
    Last,
    Lowering,
    Parts,
    Rotated,
    Rule,
    Skipped,
    Sum,
    args_of,
    unsupported,
)
from dsv2_compile.plan.expr import Size, evaluate
from dsv2_compile.plan.plan import Pointer

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2


def _embedding(low: Lowering, node: fx.Node) -> View:
    table = low.view(args_of(node)[0])
    if low.values[args_of(node)[1]] != Skipped("tokens"):
        raise unsupported(node, "an index that is not the tokens")
    out = low.draft.temporary("embedding", ROWS, table.width)
    tokens, dims = low.input("tokens"), {"N": table.width}
    low.draft.launch(kernel("embedding"), dims, {"rows": ROWS}, "embedding", tokens=tokens, table=table, out=out)
    return out


def _rms_norm(low: Lowering, node: fx.Node) -> View:
    source, weight, eps = args_of(node)
    return norm(low, node, low.values[source], low.view(weight), eps)[0]


def _add_rms_norm(low: Lowering, node: fx.Node) -> tuple[View, View]:
    x, residual, weight, eps = args_of(node)
    return norm(low, node, Sum(low.view(x), low.view(residual)), low.view(weight), eps)


def norm(low: Lowering, node: fx.Node, source: Any, weight: View, eps: Any) -> tuple[View, View]:
    """RMSNorm of a matrix or of the sum of two, of all rows or of the last of each sequence; the norm and the sum."""
    last = isinstance(source, Last)
    source = source.of if isinstance(source, Last) else source
    rows: Size = BATCH if last else ROWS
    a, b = (source.a, source.b) if isinstance(source, Sum) else (source, None)
    if not isinstance(a, View) or (b is not None and not b.contiguous):
        raise unsupported(node, "a norm of something else than rows")
    picked = last and low.phase != "decode"
    dims = {"N": a.width, "X_STRIDE": a.stride, "EPS": float(eps), "RESIDUAL": b is not None, "INDEXED": picked}
    out = low.draft.temporary("norm", rows, a.width)
    total = low.draft.temporary("residual", rows, a.width) if b is not None else None
    index = low.input("last_rows") if picked else None
    what = f"RMSNorm{' of a sum' if b is not None else ''}, {weight.buffer}"
    args = {"x": a, "residual": b, "index": index, "weight": weight, "out": out, "total": total}
    low.draft.launch(kernel("rms_norm"), dims, {"rows": rows}, what, **args)
    return out, total or a


def _linear(low: Lowering, node: fx.Node) -> Any:
    x, w = low.view(args_of(node)[0]), low.view(args_of(node)[1])
    if len(args_of(node)) != 2:
        raise unsupported(node, "a bias")
    users = list(node.users)
    if len(users) == 1 and users[0].target is _DSV2.swiglu.default:
        return Deferred(w.height, lambda into: _swiglu_into(low, x, w, into))
    if any(u.op == "output" for u in users):
        out = View(low.draft.buffer("logits", "output", "fp32", BATCH, w.rows), BATCH, w.height, w.height, "fp32")
        linear(low, x, w, out, BATCH)
        return out
    out = low.draft.temporary("linear", ROWS, w.height)
    linear(low, x, w, out, ROWS)
    return out


def linear(low: Lowering, x: View | Pointer, w: View, out: View, rows: Size, **gather: Any) -> None:
    """out = x w^T over ``rows`` rows, summed over parts of K in a second launch where the configuration says so.

    ``gather``: index (of the rows of x) and x_stride, where x is not a matrix of the draft.
    """
    stride = x.stride if isinstance(x, View) else gather["x_stride"]
    index = gather.get("index")
    dims = {"N": out.width, "K": w.width, "X_STRIDE": stride, "OUT_STRIDE": out.stride, "INDEXED": index is not None}
    ending = "_fp32" if out.dtype == "fp32" and low.draft.dtype != "fp32" else ""
    hinted = dims | {"ROWS_HINT": low.hint(rows)}
    config = low.draft.config(kernel(f"linear{ending}"), hinted, {"rows": rows})
    parts = config["SPLIT_K"]
    partial = low.draft.temporary("partial", rows, out.width * parts, "fp32") if parts > 1 else None
    target = None if parts > 1 else out
    args = {"x": x, "index": index, "w": w, "out": target, "partial": partial}
    low.draft.launch(kernel(f"linear{ending}"), hinted, {"rows": rows}, f"linear, {w.buffer}", **args)
    if partial is not None:
        sums = kernel(f"linear{ending}").then(hinted, config)
        assert sums is not None
        name, of_sums = sums
        low.draft.launch(kernel(name), of_sums, {"rows": rows}, f"sum of {parts} parts", partial=partial, out=out)


def next_tokens(low: Lowering) -> None:
    """The last launch of a program: from its logits to the output next_tokens [batch], -1 where they are not finite."""
    logits, how = low.draft.buffers["logits"], ("temperature", "top_p", "top_k", "uniform")
    out = Pointer(low.draft.buffer("next_tokens", "output", "i32", BATCH))
    args = {"logits": Pointer("logits"), **{name: low.input(name) for name in how}, "tokens": out}
    low.draft.launch(kernel("sample"), {"VOCAB": evaluate(logits.shape[1], {})}, {"rows": BATCH}, "next tokens", **args)


def _swiglu_into(low: Lowering, x: View, w: View, out: View) -> None:
    dims = {"N": out.width, "K": w.width, "X_STRIDE": x.stride, "ROWS_HINT": low.hint(ROWS)}
    low.draft.launch(kernel("linear_swiglu"), dims, {"rows": ROWS}, f"linear and SwiGLU, {w.buffer}", x=x, w=w, out=out)


def _swiglu(low: Lowering, node: fx.Node) -> View:
    value = low.values[args_of(node)[0]]
    if not isinstance(value, Deferred):
        raise unsupported(node, "a SwiGLU that is not of a linear layer")
    out = low.draft.temporary("swiglu", ROWS, value.width // 2)
    value.make(out)
    return out


def _split(low: Lowering, node: fx.Node) -> tuple[Any, ...]:
    value, sizes = low.values[args_of(node)[0]], args_of(node)[1]
    if isinstance(value, Rotated):
        return _split_heads(low, node, value, list(sizes))
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return tuple(low.view(args_of(node)[0]).columns(a, b) for a, b in pairwise(bounds))


def _split_heads(low: Lowering, node: fx.Node, value: Rotated, sizes: list[int]) -> tuple[Rotated, Rotated]:
    """Of every head, what is not rotated and what is; both still name the whole queries."""
    if sizes != [value.nope, value.rope]:
        raise unsupported(node, "queries split elsewhere than before their rotated part")
    return value, value


def _same(low: Lowering, node: fx.Node) -> Any:
    return low.values[args_of(node)[0]]


def _add(low: Lowering, node: fx.Node) -> Any:
    a, b = (low.values.get(x) if isinstance(x, fx.Node) else None for x in args_of(node))
    if isinstance(a, Skipped) or isinstance(b, Skipped):
        return Skipped("positions")
    if isinstance(a, Parts) and isinstance(b, View):
        return combine(low, a, b)
    if not isinstance(a, View) or not isinstance(b, View):
        raise unsupported(node, "a sum of something else than rows")
    return Sum(a, b)


def _position(low: Lowering, node: fx.Node) -> Skipped:
    """Arithmetic on positions and lengths, which callers provide."""
    for arg in node.all_input_nodes:
        if not isinstance(low.values[arg], Skipped):
            raise unsupported(node, "integer arithmetic on rows")
    return Skipped("positions")


def _index(low: Lowering, node: fx.Node) -> Any:
    source = low.values[args_of(node)[0]]
    if isinstance(source, View) and source.buffer in ("rope.cos", "rope.sin"):
        return Skipped(source.buffer)
    if not isinstance(source, View | Sum) or len(args_of(node)[1]) != 2:
        raise unsupported(node, "an index that is not the last row of each sequence")
    return Last(source)


def _select(low: Lowering, node: fx.Node) -> Last:
    source, dim, at = args_of(node)
    if low.phase != "decode" or (dim, at) != (1, 0):
        raise unsupported(node, "a selection that is not the only row of each sequence")
    return Last(low.values[source])


RULES: dict[Any, Rule] = {
    _ATEN.embedding.default: _embedding,
    _DSV2.rms_norm.default: _rms_norm,
    _DSV2.add_rms_norm.default: _add_rms_norm,
    _ATEN.linear.default: _linear,
    _DSV2.swiglu.default: _swiglu,
    _ATEN.split_with_sizes.default: _split,
    _ATEN.view.default: _same,
    _ATEN.flatten.using_ints: _same,
    _ATEN.add.Tensor: _add,
    _ATEN.index.Tensor: _index,
    _ATEN.select.int: _select,
    **{
        f: _position
        for f in (
            _ATEN.unsqueeze.default,
            _ATEN.arange.default,
            _ATEN.clamp.default,
            _ATEN.sub.Tensor,
            _ATEN.sym_size.int,
            operator.add,
        )
    },
}
