"""Bugs to plant behind the passes: in the rules of the ONNX Runtime backend, in programs, in weights, in the runtime.

Helpers edit the fused program or its recipes just before lowering, which is where a wrong rule would show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from dsv2_compile.backends.onnxruntime import lowering, rules_attention, rules_dense, rules_moe
from dsv2_compile.backends.onnxruntime.builder import Builder
from dsv2_compile.passes import core
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.runtime.cache import Cache
from dsv2_compile.runtime.ort import Program as Loaded
from dsv2_compile.weights import Concat, Recipe, RopeTable, Slice, Source, Stack, Transpose
from tests.small_engine import SMALL, Spoil

ATEN, DSV2 = torch.ops.aten, torch.ops.dsv2
MLA = (DSV2.mla_absorbed.default, DSV2.mla_expanded.default)
Patch = pytest.MonkeyPatch
Edit = Callable[[Program], None]
LOGITS = None
BOTH = ("prefill", "decode")


NOTHING = Spoil()


@dataclass(frozen=True, eq=False)
class EngineBug:
    """``layer``: the first whose rows must be found wrong, None if only the logits are; ``culprit``: the layer to
    blame; ``phases``: the programs with wrong results on the path ``path``."""

    name: str
    layer: int | None
    culprit: int
    spoil: Spoil = field(default_factory=Spoil)
    plant: Callable[[Patch], None] = lambda m: None
    phases: tuple[str, ...] = BOTH
    path: str = "batch"


# Programs ------------------------------------------------------------------------------------------


def nth(program: Program, index: int, *targets: Any) -> fx.Node:
    return [n for n in program.nodes() if n.op == "call_function" and n.target in targets][index]


def argument(index: int, position: int, value: Any, *targets: Any, phases: tuple[str, ...] = BOTH) -> Spoil:
    """Argument ``position`` of the ``index``-th call of ``targets`` is ``value``, or ``value(node)``."""

    def edit(program: Program) -> None:
        if program.phase not in phases:
            return
        node = nth(program, index, *targets)
        node.update_arg(position, value(node) if callable(value) else value)

    return Spoil(edit)


def placeholder(name: str) -> Callable[[fx.Node], fx.Node]:
    return lambda node: next(n for n in node.graph.nodes if n.target == name)


def swapped(index: int, i: int, j: int, *targets: Any) -> Spoil:
    def edit(program: Program) -> None:
        node = nth(program, index, *targets)
        a, b = node.args[i], node.args[j]
        node.update_arg(i, b)
        node.update_arg(j, a)

    return Spoil(edit)


def bypassed(index: int, argument: int, *targets: Any) -> Spoil:
    """A call is replaced by one of its arguments."""

    def edit(program: Program) -> None:
        node = nth(program, index, *targets)
        node.replace_all_uses_with(node.args[argument])
        core.sweep(program)

    return Spoil(edit)


def one_position_later(program: Program) -> None:
    node = nth(program, 0, ATEN.clamp.default)
    at: Any = node.args[0]
    node.update_arg(0, core.aten(program, node, ATEN.add.Tensor, at.meta["spec"], at, 1))


def cut_table(rows: int) -> Spoil:
    """Positions beyond ``rows`` are turned as the last of them."""
    return argument(0, 2, rows - 1, ATEN.clamp.default)


def key_before_latent(layer: int) -> Spoil:
    def edit(program: Program) -> None:
        node = nth(program, layer, DSV2.latent_rope.default)
        users = list(node.users)
        spec, c = node.meta["spec"], program.config
        with program.graph.inserting_after(node):
            halves = program.graph.call_function(
                ATEN.split_with_sizes.default, (node, [c.kv_lora_rank, c.qk_rope_head_dim], -1)
            )
        halves.meta["spec"] = tuple(
            TensorSpec((*spec.shape[:-1], n), spec.dtype) for n in (c.kv_lora_rank, c.qk_rope_head_dim)
        )
        after = halves.next
        parts = [core.take(program, after, halves, i) for i in (1, 0)]
        turned = core.aten(program, after, ATEN.cat.default, spec, parts, -1)
        for user in users:
            user.replace_input_with(node, turned)

    return Spoil(edit)


def one_expert_less(index: int) -> Spoil:
    """The gate chooses one expert too few."""

    def edit(program: Program) -> None:
        node = nth(program, index, DSV2.gate.default)
        node.update_arg(2, node.args[2] - 1)
        node.meta["spec"] = tuple(TensorSpec((*s.shape[:-1], s.shape[-1] - 1), s.dtype) for s in node.meta["spec"])
        for user in node.users:
            user.meta["spec"] = node.meta["spec"][user.args[1]]

    return Spoil(edit)


# Weights -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounded(Recipe):
    """``of`` through a smaller dtype."""

    of: Recipe
    kept: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def pieces(self, source: Any, dtype: torch.dtype) -> Any:
        yield self.of.evaluate(source, dtype).to(self.kept).to(dtype)


def weight(name: str, change: Callable[[Any], Recipe]) -> Spoil:
    return Spoil(recipe={name: change})


def of_layer(layer: int, name: str, other: int) -> Spoil:
    """Layer ``layer`` has the weight of layer ``other``."""

    def change(r: Source) -> Recipe:
        return Source(r.name.replace(f".{layer}.", f".{other}.", 1), r.dims)

    return weight(f"model.layers.{layer}.{name}", change)


def turned(recipe: Recipe, by: int = 1) -> Recipe:
    """The leading dim rotated."""
    return Concat((Slice(recipe, 0, by, recipe.shape[0]), Slice(recipe, 0, 0, by)))


def halves_swapped(layer: int) -> Spoil:
    """W_UK for W_UV and the other way; the two have one shape, transposed."""
    uk, uv = (f"model.layers.{layer}.self_attn.w_{x}" for x in ("uk", "uv"))

    def edit(program: Program) -> None:
        r = program.weights.recipes
        if uk in r:
            r[uk], r[uv] = Transpose(r[uv], 1, 2), Transpose(r[uk], 1, 2)

    return Spoil(edit)


def exchanged(stack: Stack) -> Recipe:
    """Two experts in each other's place."""
    a, b, *rest = stack.parts
    return Stack((b, a, *rest))


def rope_table(function: str) -> Callable[[RopeTable], Recipe]:
    rope = replace(SMALL.rope, mscale=SMALL.rope.mscale_all_dim)
    return lambda r: RopeTable(replace(SMALL, rope=rope), function, r.positions)


def half_split_key(layer: int) -> Spoil:
    """The rotary rows of the kv projection as for a rotation of halves, x0, x4, x1, x5, ..."""
    name = f"model.layers.{layer}.self_attn.q_a_proj_kv_a_proj_with_mqa.weight"

    def change(joined: Concat) -> Recipe:
        q, kv = joined.parts
        start = SMALL.kv_lora_rank
        rows = [Slice(kv, 0, start + r, start + r + 1) for r in (0, 4, 1, 5, 2, 6, 3, 7)]
        return Concat((q, Slice(kv, 0, 0, start), *rows))

    return weight(name, change)


# Rules of the backend ------------------------------------------------------------------------------


def rule(operator: Any, wrong: Callable[..., Any]) -> Callable[[Patch], None]:
    """``wrong(plain, builder, out, *args)`` in the place of the rule."""
    table = lowering.ORT_RULES if operator in lowering.ORT_RULES else lowering.RULES
    plain = table[operator]

    def replaced(b: Builder, out: Any, *args: Any) -> Any:
        return wrong(plain, b, out, *args)

    return lambda m: m.setitem(table, operator, replaced)


def emitted(op: str, **attributes: Any) -> Callable[[Patch], None]:
    """Every ONNX node of ``op`` has these attributes."""
    plain = Builder.add

    def add(self: Builder, kind: str, inputs: Any, outputs: Any, domain: str = "", **given: Any) -> None:
        plain(self, kind, inputs, outputs, domain=domain, **(given | attributes if kind == op else given))

    return lambda m: m.setattr(Builder, "add", add)


def renamed(function: str, op: str, other: str) -> Callable[[Patch], None]:
    """Within a function of rules_attention, ONNX operator ``other`` stands for ``op``."""
    plain, emit = getattr(rules_attention, function), Builder.emit

    def wrong(b: Builder, *args: Any) -> Any:
        with pytest.MonkeyPatch.context() as m:
            m.setattr(Builder, "emit", lambda self, kind, *a, **k: emit(self, other if kind == op else kind, *a, **k))
            return plain(b, *args)

    return lambda m: m.setattr(rules_attention, function, wrong)


def no_mask(b: Builder, past: Any, tokens: Any, context: Any) -> str:
    shape = b.sizes((past.shape[0], tokens, context + tokens))
    return b.emit("Expand", b.constant(0.0, np.float32), shape)


def one_token_ahead(b: Builder, past: Any, tokens: Any, context: Any) -> str:
    """Query s sees new row s + 1."""
    emit = Builder.emit

    def later(self: Builder, kind: str, *inputs: str, **given: Any) -> str:
        if kind == "LessOrEqual":
            inputs = (inputs[0], emit(self, "Add", inputs[1], self.constant(1)))
        return emit(self, kind, *inputs, **given)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Builder, "emit", later)
        return HIDDEN(b, past, tokens, context)


HIDDEN = rules_attention._hidden


def up_before_gate(b: Builder, gate_up: str, half: int) -> str:
    up, gate = b.split(gate_up, (half, half))
    return b.emit("Mul", b.emit("Mul", gate, b.emit("Sigmoid", gate)), up)


def over_tokens(plain: Callable[..., Any], b: Builder, out: Any, *args: Any) -> Any:
    """The softmax of the gate over the tokens instead of the experts."""
    with pytest.MonkeyPatch.context() as m:
        emitted("Softmax", axis=1)(m)
        return plain(b, out, *args)


def unweighted(plain: Callable[..., Any], b: Builder, out: Any, *args: Any) -> Any:
    """The sum of the experts not multiplied by the sum of their weights."""
    plain(b, out, *args)
    return next(n.output[0] for n in reversed(b.nodes) if n.op_type == "MoE")


# Runtime -------------------------------------------------------------------------------------------

STORE = Cache.store


def decoded_rows_lost(self: Cache, first: int, past: Any, lengths: Any, rows: Any) -> None:
    """A decode step keeps reading the cache as the prompt left it."""
    STORE(self, first, past, lengths, rows if rows.shape[2] > 1 else np.zeros_like(rows))


def stored_one_early(self: Cache, first: int, past: Any, lengths: Any, rows: Any) -> None:
    STORE(self, first, np.maximum(past - 1, 0), lengths, rows)


def stored_in_another_slot(self: Cache, first: int, past: Any, lengths: Any, rows: Any) -> None:
    STORE(self, first, past[::-1], lengths[::-1], rows[:, ::-1])


def last_column(plain: Any) -> Callable[..., Any]:
    """The program is told that every row is as long as the longest."""

    def run(self: Loaded, tokens: Any, past: Any, lengths: Any, caches: Any) -> Any:
        return plain(self, tokens, past, np.full_like(lengths, tokens.shape[1]), caches)

    return run


def layer_of_another(plain: Any) -> Callable[..., Any]:
    """The cache of layer 2 is shown to layer 3."""

    def views(self: Cache, first: int, past: Any) -> Any:
        found = plain(self, first, past)
        return [*found[:3], found[2]]

    return views


def runtime(owner: Any, name: str, wrong: Any) -> Callable[[Patch], None]:
    return lambda m: m.setattr(owner, name, wrong)


ADD_NORM, LATENT, GATE = DSV2.add_rms_norm.default, DSV2.latent_rope.default, DSV2.gate.default
ENGINE_BUGS = [
    # rules
    EngineBug("a digit off in eps", 0, 0, plant=emitted("RMSNormalization", epsilon=1e-4)),
    EngineBug("a digit off in eps, fused norm", 1, 0, plant=emitted("SkipSimplifiedLayerNormalization", epsilon=1e-4)),
    EngineBug("rotation of halves", 0, 0, plant=emitted("RotaryEmbedding", interleaved=0)),
    EngineBug("no mask", 1, 0, plant=runtime(rules_attention, "_hidden", no_mask)),
    EngineBug("sees the next token", 1, 0, plant=runtime(rules_attention, "_hidden", one_token_ahead)),
    EngineBug("one cached row too many", 1, 0, plant=renamed("_hidden", "Less", "LessOrEqual"), phases=("decode",)),
    EngineBug("softmax over the queries", 1, 0, plant=emitted("Softmax", axis=-2)),
    EngineBug("router softmax over the tokens", 2, 1, plant=rule(GATE, over_tokens), phases=BOTH),
    EngineBug("silu of the wrong half", 1, 0, plant=runtime(rules_dense, "swiglu_of", up_before_gate)),
    EngineBug("sum of expert weights lost", 2, 1, plant=rule(DSV2.experts.default, unweighted)),
    EngineBug("kernel of the experts takes one too few", 2, 1, plant=emitted("MoE", k=2)),
    EngineBug("mask of unchosen experts too weak", 2, 1, plant=lambda m: m.setattr(rules_moe, "NOT_CHOSEN", -1.0)),
    # programs
    EngineBug("positions off by one", 0, 0, Spoil(one_position_later)),
    EngineBug("query turned by the sine for the cosine", 3, 2, swapped(2, 1, 2, DSV2.rope.default)),
    EngineBug("no softmax scale", 2, 1, argument(1, -2, 1.0, *MLA)),
    EngineBug("softmax scale without mscale", 3, 2, argument(2, -2, SMALL.qk_head_dim**-0.5, *MLA)),
    EngineBug("gate renormalised", 3, 2, argument(1, 6, True, GATE)),
    EngineBug("gate not scaled", 2, 1, argument(0, 5, 1.0, GATE)),
    EngineBug("group limit dropped", 3, 2, argument(1, 3, 1, GATE)),
    EngineBug("one expert too few", LOGITS, 3, one_expert_less(2)),
    EngineBug("shared experts dropped", LOGITS, 3, bypassed(-2, 0, ATEN.add.Tensor)),
    EngineBug("residual dropped", 2, 1, argument(2, 1, lambda n: n.args[0], ADD_NORM)),
    EngineBug("cache rows turned round", 2, 2, key_before_latent(2)),
    EngineBug(
        "the last token but one",
        LOGITS,
        3,
        argument(0, 1, 2, ATEN.sub.Tensor, phases=("prefill",)),
        phases=("prefill",),
    ),
    EngineBug("cache of another layer", 3, 2, argument(2, 1, placeholder("cache.1"), *MLA), phases=("decode",)),
    EngineBug("rotary table ends at 34", 0, 0, cut_table(34), phases=("decode",)),
    EngineBug("rotary table ends at 64", 0, 0, cut_table(64), path="far"),
    # weights
    EngineBug(
        "gate and up of the experts swapped",
        3,
        2,
        weight(
            "model.layers.2.mlp.experts.gate_up_proj", lambda r: Stack(tuple(Concat(p.parts[::-1]) for p in r.parts))
        ),
    ),
    EngineBug("experts rotated by one", 2, 1, weight("model.layers.1.mlp.experts.down_proj", turned)),
    EngineBug("two experts exchanged", 3, 2, weight("model.layers.2.mlp.experts.down_proj", exchanged)),
    EngineBug("W_UK and W_UV swapped", 2, 1, halves_swapped(1), phases=("decode",)),
    EngineBug("heads of W_UV rotated", 3, 2, weight("model.layers.2.self_attn.w_uv", turned), phases=("decode",)),
    EngineBug("input norm of another layer", 2, 2, of_layer(2, "input_layernorm.weight", 1)),
    EngineBug("latent norm of another layer", 3, 3, of_layer(3, "self_attn.kv_a_layernorm.weight", 2)),
    EngineBug("query norm of another layer", 2, 1, of_layer(1, "self_attn.q_a_layernorm.weight", 0)),
    EngineBug("key rows for a rotation of halves", 1, 1, half_split_key(1)),
    EngineBug(
        "joined projections turned round",
        1,
        1,
        weight("model.layers.1.self_attn.q_a_proj_kv_a_proj_with_mqa.weight", lambda r: Concat(r.parts[::-1])),
    ),
    EngineBug(
        "output projection in eight bits",
        2,
        1,
        weight("model.layers.1.self_attn.o_proj.weight", lambda r: Rounded(r, torch.float8_e4m3fn)),
    ),
    EngineBug("a token late in the embedding", 0, 0, weight("model.embed_tokens.weight", turned)),
    EngineBug(
        "lm_head tied", LOGITS, 3, weight("lm_head.weight", lambda r: Source("model.embed_tokens.weight", r.dims))
    ),
    EngineBug("attention factor left out", 0, 0, Spoil(recipe={f"rope.{f}": rope_table(f) for f in ("cos", "sin")})),
    EngineBug(
        "rotary tables in half precision",
        0,
        0,
        Spoil(recipe={f"rope.{f}": lambda r: Rounded(r, torch.float16) for f in ("cos", "sin")}),
    ),
    # runtime
    EngineBug("stale cache", 1, 0, plant=runtime(Cache, "store", decoded_rows_lost), phases=("decode",)),
    EngineBug("rows stored one early", 1, 0, plant=runtime(Cache, "store", stored_one_early), phases=("decode",)),
    EngineBug(
        "rows stored in another slot", 1, 0, plant=runtime(Cache, "store", stored_in_another_slot), phases=("decode",)
    ),
    EngineBug(
        "logits of the padding", LOGITS, 3, plant=runtime(Loaded, "run", last_column(Loaded.run)), phases=("prefill",)
    ),
    EngineBug(
        "cache of another layer shown",
        LOGITS,
        3,
        plant=runtime(Cache, "views", layer_of_another(Cache.views)),
        phases=("decode",),
    ),
]
