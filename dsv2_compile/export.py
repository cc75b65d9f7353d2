"""torch.export of the reference on meta tensors, into programs `prefill` and `decode`.

Each distinct kind of piece (embedding, dense layer, MoE layer, head) is exported once, with its
weights as inputs, and stamped out for every layer. `tests/null/test_export.py` proves the stamped
program equal, node for node and in fp64, to one export of the whole model.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.fx.traceback import preserve_node_meta

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import ModelError
from dsv2_compile.model import reference
from dsv2_compile.model.layout import naive_weights
from dsv2_compile.origin import Origins, raised_at
from dsv2_compile.program import BATCH, CONTEXT, TOKENS, Dim, Program, TensorSpec

PHASES = ("prefill", "decode")
_SAMPLE = {BATCH: 3, TOKENS: 5, CONTEXT: 7}
_PLACEMENT = ("device", "layout", "pin_memory")
"""Keywords of factory calls that would tie the graph to the meta device."""
Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Piece:
    """A traced part: ``fn(values, weights) -> tuple``; names of inputs, outputs and weights.

    ``where``: the part of the model it is, for messages; of several, the first.
    """

    fn: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], tuple[torch.Tensor, ...]]
    inputs: Specs
    outputs: tuple[str, ...]
    weights: Specs
    where: str = "model"


class _Traced(torch.nn.Module):
    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self.piece = piece

    def forward(self, values: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with Origins():
            return self.piece.fn(values, weights)


def _sample(spec: TensorSpec) -> torch.Tensor:
    shape = [int(d.subs(_SAMPLE)) if isinstance(d, sympy.Expr) else d for d in spec.shape]
    return torch.empty(shape, dtype=spec.dtype, device="meta")


def trace(piece: Piece) -> ExportedProgram:
    """Export one piece on meta tensors; every symbolic dim of its inputs stays symbolic."""
    values = {k: _sample(s) for k, s in piece.inputs.items()}
    weights = {k: _sample(s) for k, s in piece.weights.items()}
    dynamic = {
        k: {i: ExportDim.AUTO for i, d in enumerate(s.shape) if isinstance(d, sympy.Expr)}
        for k, s in piece.inputs.items()
    }
    shapes = {"values": dynamic, "weights": {k: None for k in weights}}
    try:
        with _quiet(), preserve_node_meta():
            return torch.export.export(_Traced(piece), (values, weights), dynamic_shapes=shapes, strict=False)
    except Exception as e:
        first = next(iter(str(e).splitlines()), repr(e))
        raise ModelError(
            f"torch.export cannot trace {piece.where}, {raised_at(e)}: {first}",
            "the reference must not branch on tensor values, nor use operators without a meta kernel",
        ) from e


@contextmanager
def _quiet() -> Iterator[None]:
    """torch prints the graph so far before it raises, and logs every step of a trace."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


class Stamper:
    """Copies exported pieces into one program graph, renaming symbols, inputs and weights."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.weights: dict[str, fx.Node] = {}
        self.body: fx.Node | None = None

    def placeholder(self, name: str, spec: TensorSpec) -> fx.Node:
        node = self.graph.create_node("placeholder", name, name=name.replace(".", "_"))
        node.meta["spec"] = spec
        return node

    def weight(self, name: str, spec: TensorSpec) -> fx.Node:
        """The node of a weight; all stand before the body, so that a pass may use them anywhere in it."""
        if name not in self.weights:
            with self.graph.inserting_before(self.body):
                node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
            node.meta["spec"] = spec
            self.weights[name] = node
        return self.weights[name]

    def stamp(
        self, piece: Piece, traced: ExportedProgram, values: Mapping[str, fx.Node], rename: Callable[[str], str]
    ) -> tuple[fx.Node, ...]:
        """Copy ``traced``; weights named by ``rename``. Returns the nodes of its outputs."""
        names = list(traced.graph_signature.user_inputs)
        specs = [*piece.inputs.items(), *piece.weights.items()]
        symbols: dict[sympy.Symbol, Dim] = {}
        env: dict[fx.Node, fx.Node] = {}
        placeholders = {n.name: n for n in traced.graph.nodes if n.op == "placeholder"}
        for placeholder, (name, spec) in zip((placeholders[str(n)] for n in names), specs, strict=True):
            for got, want in zip(placeholder.meta["val"].shape, spec.shape, strict=True):
                _unify(symbols, got, want, f"{name} in {piece.where}")
            env[placeholder] = values[name] if name in values else self.weight(rename(name), spec)
        for node in traced.graph.nodes:
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                continue  # asserts the meta device
            if node.op == "call_function":
                copy = self.graph.node_copy(node, lambda n: env[n])
                copy.kwargs = {k: v for k, v in copy.kwargs.items() if k not in _PLACEMENT}
                copy.meta = described(node.meta.get("val"), symbols)
                if origin := node.meta.get("custom", {}).get("from"):
                    copy.meta["from"] = f"{rename('').rstrip('.') or piece.where}, {origin}"
                self.body = self.body or copy
                env[node] = copy
            elif node.op == "output":
                return tuple(env[n] for n in node.args[0])
        raise AssertionError("an exported graph ends in an output node")


def _unify(symbols: dict[sympy.Symbol, Dim], got: Any, want: Dim, name: str) -> None:
    if isinstance(want, sympy.Symbol):
        expr = got.node.expr if isinstance(got, torch.SymInt) else sympy.Integer(got)
        if not isinstance(expr, sympy.Symbol) or symbols.setdefault(expr, want) != want:
            raise ModelError(
                f"export specialised {want} of {name} to {expr}", "the reference must work for every size of its inputs"
            )


def described(val: Any, symbols: Mapping[sympy.Symbol, Dim]) -> dict[str, Any]:
    """meta of a copied node: ``spec`` for tensors, ``sym`` for sizes."""
    if isinstance(val, torch.Tensor):
        return {"spec": TensorSpec(tuple(_dim(d, symbols) for d in val.shape), val.dtype)}
    if isinstance(val, (tuple, list)):
        return {"spec": tuple(described(v, symbols)["spec"] for v in val)}
    if isinstance(val, (torch.SymInt, int)):
        return {"sym": _dim(val, symbols)}
    return {}


def _dim(d: Any, symbols: Mapping[sympy.Symbol, Dim]) -> Dim:
    if not isinstance(d, torch.SymInt):
        return int(d)
    expr = d.node.expr.xreplace(dict(symbols))
    return int(expr) if expr.is_Integer else expr


def pieces(config: ModelConfig, phase: str, dtype: torch.dtype, positions: int) -> dict[str, Piece]:
    """The distinct parts of one phase: embed, dense and/or moe, head."""
    c = config
    count: Dim = TOKENS if phase == "prefill" else 1
    table = naive_weights(c, positions)
    hidden = TensorSpec((BATCH, count, c.hidden_size), dtype)
    angle = TensorSpec((BATCH, count, c.qk_rope_head_dim // 2), dtype)
    cache = TensorSpec((BATCH, CONTEXT, c.cache_dim), dtype)
    ids = TensorSpec((BATCH, count), torch.int64)
    row = TensorSpec((BATCH,), torch.int64)

    def weights(names: Sequence[str], strip: str = "") -> dict[str, TensorSpec]:
        return {n.removeprefix(strip): TensorSpec(table[n].shape, dtype) for n in names}

    def embed(v: Mapping[str, Any], w: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, ctx = reference.embed(w, v["tokens"], v["past"], v["cache.0"].shape[1])
        return x, ctx.cos, ctx.sin, ctx.visible

    def block(is_moe: bool) -> Callable[..., tuple[torch.Tensor, ...]]:
        def fn(v: Mapping[str, Any], w: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            ctx = reference.Context(v["cos"], v["sin"], v["visible"])
            return reference.layer(c, w, is_moe, v["hidden"], v["cache"], ctx)

        return fn

    def head(v: Mapping[str, Any], w: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = reference.last(v["hidden"], v["lengths"]) if phase == "prefill" else v["hidden"][:, 0]
        return (reference.head(c, w, x),)

    out = {
        "embed": Piece(
            embed,
            {"tokens": ids, "past": row, "cache.0": cache},
            ("hidden", "cos", "sin", "visible"),
            weights(["model.embed_tokens.weight", "rope.cos", "rope.sin"]),
            "model.embed_tokens",
        ),
        "head": Piece(
            head,
            {"hidden": hidden, **({"lengths": row} if phase == "prefill" else {})},
            ("logits",),
            weights(["model.norm.weight", "lm_head.weight"]),
            "model.norm and lm_head",
        ),
    }
    layer_inputs = {
        "hidden": hidden,
        "cache": cache,
        "cos": angle,
        "sin": angle,
        "visible": TensorSpec((BATCH, count, CONTEXT + count), torch.bool),
    }
    for i in range(c.num_hidden_layers):
        kind = "moe" if c.is_moe(i) else "dense"
        if kind not in out:
            prefix = f"model.layers.{i}."
            names = [n for n in table.recipes if n.startswith(prefix)]
            out[kind] = Piece(
                block(kind == "moe"), layer_inputs, ("hidden", "rows"), weights(names, prefix), prefix.rstrip(".")
            )
    return out


@lru_cache(maxsize=8)
def traced_pieces(
    config: ModelConfig, phase: str, dtype: torch.dtype, positions: int
) -> tuple[dict[str, Piece], dict[str, ExportedProgram]]:
    """The distinct parts of one phase and their traces, which nobody may change: programs are stamped from them. Kept,
    since a build for a GPU stamps three programs and their twins from two phases."""
    parts = pieces(config, phase, dtype, positions)
    return parts, {kind: trace(piece) for kind, piece in parts.items()}


def export(
    config: ModelConfig, phase: str, dtype: torch.dtype = torch.float32, positions: int | None = None
) -> Program:
    """The naive program of ``phase``: ``prefill`` or ``decode``. ``positions``: rows of the rope tables."""
    positions = positions or config.max_position_embeddings
    parts, traced = traced_pieces(config, phase, dtype, positions)
    count: Dim = TOKENS if phase == "prefill" else 1
    inputs = dict(parts["embed"].inputs)
    del inputs["cache.0"]
    if phase == "prefill":
        inputs["lengths"] = parts["head"].inputs["lengths"]
    cache = TensorSpec((BATCH, CONTEXT, config.cache_dim), dtype)
    inputs |= {f"cache.{i}": cache for i in range(config.num_hidden_layers)}

    s = Stamper()
    nodes = {name: s.placeholder(name, spec) for name, spec in inputs.items()}
    hidden, cos, sin, visible = s.stamp(parts["embed"], traced["embed"], nodes, str)
    rows = []
    for i in range(config.num_hidden_layers):
        kind = "moe" if config.is_moe(i) else "dense"
        values = {"hidden": hidden, "cache": nodes[f"cache.{i}"], "cos": cos, "sin": sin, "visible": visible}
        prefix = f"model.layers.{i}."
        hidden, new = s.stamp(parts[kind], traced[kind], values, prefix.__add__)
        rows.append(new)
    (logits,) = s.stamp(parts["head"], traced["head"], {"hidden": hidden, **nodes}, str)
    s.graph.output((logits, *rows))
    outputs = {"logits": TensorSpec((BATCH, config.vocab_size), dtype)}
    outputs |= {f"rows.{i}": TensorSpec((BATCH, count, config.cache_dim), dtype) for i in range(len(rows))}
    limit = config.max_position_embeddings
    ranges = {"batch": (1, 1 << 20), "tokens": (1, limit) if phase == "prefill" else (1, 1), "context": (0, limit)}
    return Program(phase, config, s.graph, ranges, inputs, outputs, naive_weights(config, positions))
