"""Bugs to plant in the passes: each makes one pass write one thing wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import fx

from dsv2_compile.passes import (
    absorb,
    attention,
    cache_rows,
    canonicalise,
    core,
    dead_code,
    experts,
    gate,
    merge_projections,
    residual_norm,
    rms_norm,
    rope,
    swiglu,
)
from dsv2_compile.program import Program
from dsv2_compile.weights import Concat, Recipe, Reshape, Slice, Stack, Transpose

ATEN, DSV2 = torch.ops.aten, torch.ops.dsv2
Patch = pytest.MonkeyPatch
Change = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class PassBug:
    """``form``: of MLA, which the bug needs to show."""

    name: str
    culprit: str
    plant: Callable[[Patch], None]
    phase: str = "prefill"
    form: str = "absorbed"


def arguments(module: ModuleType, change: Change, only: Any = None) -> Callable[[Patch], None]:
    """The pass gives its operator (of several, ``only``) ``change(program, at, *args)``."""

    def call(program: Program, at: fx.Node, overload: Any, *args: Any) -> fx.Node:
        wrong = args if only not in (None, overload) else change(program, at, *args)
        return core.call(program, at, overload, *wrong)

    return lambda m: m.setattr(module, "call", call)


def at(index: int, value: Any) -> Change:
    """Argument ``index`` is ``value``."""
    return lambda program, node, *args: (*args[:index], value, *args[index + 1 :])


def swap(i: int, j: int) -> Change:
    def change(program: Program, node: fx.Node, *args: Any) -> tuple[Any, ...]:
        wrong = list(args)
        wrong[i], wrong[j] = args[j], args[i]
        return tuple(wrong)

    return change


def first_weight_like(index: int) -> Change:
    """The first weight of the shape of argument ``index``: that of another layer."""

    def change(program: Program, node: fx.Node, *args: Any) -> tuple[Any, ...]:
        spec = args[index].meta["spec"]
        other = next(n for n in program.graph.nodes if n.op == "get_attr" and n.meta["spec"] == spec)
        return (*args[:index], other, *args[index + 1 :])

    return change


def through(index: int, overload: Any, *rest: Any) -> Change:
    """An ATen operator is applied to argument ``index``."""

    def change(program: Program, node: fx.Node, *args: Any) -> tuple[Any, ...]:
        value = core.aten(program, node, overload, args[index].meta["spec"], args[index], *rest)
        return (*args[:index], value, *args[index + 1 :])

    return change


def afterwards(cls: type[core.Pass], edit: Callable[[Program], None]) -> Callable[[Patch], None]:
    """The pass leaves the program as ``edit`` makes it."""
    apply = cls.apply

    def wrong(self: core.Pass, program: Program) -> core.Outcome:
        outcome = apply(self, program)
        edit(program)
        return outcome

    return lambda m: m.setattr(cls, "apply", wrong)


def recipe(suffix: str, change: Callable[[Any], Recipe]) -> Callable[[Program], None]:
    def edit(program: Program) -> None:
        for name, r in program.weights.recipes.items():
            if name.endswith(suffix):
                program.weights.recipes[name] = change(r)

    return edit


def halves_from_the_end(program: Program, m: Any) -> tuple[Recipe, Recipe]:
    c = program.config
    rows = c.qk_nope_head_dim + c.v_head_dim
    whole = Reshape(program.weights[m["w_kv"].target], (c.num_attention_heads, rows, c.kv_lora_rank))
    return Slice(whole, 1, c.v_head_dim, rows), Slice(whole, 1, 0, c.v_head_dim)


def keys_before_values(program: Program, m: Any) -> tuple[Recipe, Recipe]:
    """As if kv_b_proj held the keys of all heads, then the values of all."""
    c = program.config
    whole, keys = program.weights[m["w_kv"].target], c.num_attention_heads * c.qk_nope_head_dim
    shape = c.num_attention_heads, -1, c.kv_lora_rank
    parts = Slice(whole, 0, 0, keys), Slice(whole, 0, keys, whole.shape[0])
    return tuple(Reshape(p, (shape[0], p.shape[0] // shape[0], shape[2])) for p in parts)  # type: ignore[return-value]


def wrong_rotary_rows(m: Patch) -> None:
    """Merged queries take the first rows of each head of W_Q for the rotary part."""
    plain = absorb.Slice

    def slice_(of: Recipe, dim: int, start: int, stop: int) -> Recipe:
        rotary = isinstance(of, Reshape) and start > 0 and of.shape[1] == stop and of.shape[2] != 20
        return plain(of, dim, 0, stop - start) if rotary else plain(of, dim, start, stop)

    m.setattr(absorb, "Slice", slice_)


def untransposed_output(m: Patch) -> None:
    """Merged outputs read W_O as [H, hidden, v] without turning it."""

    def transpose(of: Recipe, a: int, b: int) -> Recipe:
        whole = isinstance(of, Reshape) and (a, b) == (0, 1) and of.dims[1] < of.dims[0]
        return Reshape(of, (of.shape[1], of.shape[0], of.shape[2])) if whole else Transpose(of, a, b)

    m.setattr(absorb, "Transpose", transpose)


def first_group_again(m: Patch) -> None:
    """Every merged weight is made of the first group's."""
    known: list[Recipe] = []

    def concat(parts: tuple[Recipe, ...]) -> Recipe:
        made = Concat(parts)
        same = [r for r in known if r.shape == made.shape]
        known.append(made)
        return same[0] if same else made

    m.setattr(merge_projections, "Concat", concat)


def ignoring_the_start_of_slices(m: Patch) -> None:
    key = canonicalise._key

    def wrong(node: fx.Node) -> Any:
        found = key(node)
        return (found[0], found[1][:2], found[1][3:]) if node.target is ATEN.slice.Tensor else found

    m.setattr(canonicalise, "_key", wrong)


def without_the_last_residual(program: Program) -> None:
    *_, node = (n for n in program.nodes() if n.target is ATEN.add.Tensor and len(n.meta["spec"].shape) == 3)
    node.replace_all_uses_with(node.args[1])
    core.sweep(program)


def rotated(stack: Stack) -> Recipe:
    return Stack((*stack.parts[1:], stack.parts[0]))


def other_half_first(stack: Stack) -> Recipe:
    return Stack(tuple(Concat(p.parts[::-1]) for p in stack.parts if isinstance(p, Concat)))


def said_the_wrong_way_round(m: Patch) -> None:
    """The parts of a split are right, but said to have each other's sizes."""
    plain = merge_projections.split

    def split(program: Program, at: fx.Node, x: fx.Node, sizes: Any) -> list[fx.Node]:
        parts = plain(program, at, x, sizes)
        node = parts[0].all_input_nodes[0]
        node.meta["spec"] = node.meta["spec"][::-1]
        return parts

    m.setattr(merge_projections, "split", split)


def rolled(program: Program, node: fx.Node, x: fx.Node) -> fx.Node:
    spec = x.meta["spec"]
    return core.aten(program, node, ATEN.roll.default, spec, x, [spec.shape[-1] // 2], [-1])


PASS_BUGS = [
    PassBug("sine left out", "canonicalise", ignoring_the_start_of_slices),
    PassBug("eps of the latent norms for all", "rms_norm", arguments(rms_norm, at(2, 1e-6))),
    PassBug("no eps", "rms_norm", arguments(rms_norm, at(2, 0.0))),
    PassBug("weight of another layer's norm", "rms_norm", arguments(rms_norm, first_weight_like(1))),
    PassBug("cos and sin swapped in the query", "rope", arguments(rope, swap(1, 2))),
    PassBug("query turned the other way", "rope", arguments(rope, through(2, ATEN.neg.default)), "decode"),
    PassBug("rms_norm_eps in the latent norm", "cache_rows", arguments(cache_rows, at(4, 1e-5))),
    PassBug("cos and sin swapped in the key", "cache_rows", arguments(cache_rows, swap(2, 3)), "decode"),
    PassBug("latent norm of another layer", "cache_rows", arguments(cache_rows, first_weight_like(1))),
    PassBug("gate not scaled", "gate", arguments(gate, at(5, 1.0))),
    PassBug("gate renormalised", "gate", arguments(gate, at(6, True)), "decode"),
    PassBug(
        "group limit dropped",
        "gate",
        arguments(gate, lambda program, node, *a: (*a[:3], 1, 1, *a[5:])),
    ),
    PassBug("one group too many", "gate", arguments(gate, lambda program, node, *a: (*a[:4], a[4] + 1, *a[5:]))),
    PassBug("one expert too few", "gate", arguments(gate, lambda program, node, *a: (*a[:2], a[2] - 1, *a[3:]))),
    PassBug("experts of another layer", "experts", arguments(experts, first_weight_like(4))),
    PassBug(
        "gate and up of the experts swapped",
        "experts",
        afterwards(experts.Experts, recipe("experts.gate_up_proj", other_half_first)),
    ),
    PassBug(
        "experts rotated by one",
        "experts",
        afterwards(experts.Experts, recipe("experts.down_proj", rotated)),
        "decode",
    ),
    PassBug(
        "mscale left out",
        "attention",
        arguments(attention, lambda program, node, *a: (*a[:5], program.config.qk_head_dim**-0.5, a[6])),
    ),
    PassBug("one cached row too many", "attention", arguments(attention, through(4, ATEN.add.Tensor, 1)), "decode"),
    PassBug("new rows before the cached ones", "attention", arguments(attention, swap(1, 2))),
    PassBug(
        "W_UK and W_UV taken from the wrong ends", "absorb", lambda m: m.setattr(absorb, "_halves", halves_from_the_end)
    ),
    PassBug(
        "keys of all heads before values",
        "absorb",
        lambda m: m.setattr(absorb, "_halves", keys_before_values),
        "decode",
    ),
    PassBug(
        "W_UK not transposed",
        "absorb",
        lambda m: m.setattr(absorb, "Transpose", lambda of, a, b: Reshape(of, (of.shape[0], of.shape[2], of.shape[1]))),
        "decode",
    ),
    PassBug(
        "scale of the latent width",
        "absorb",
        arguments(
            absorb, lambda program, node, *a: (*a[:4], program.config.cache_dim**-0.5, a[5]), DSV2.mla_absorbed.default
        ),
    ),
    PassBug("merged query with the wrong rotary rows", "absorb", wrong_rotary_rows, form="merged"),
    PassBug("merged output with W_O unturned", "absorb", untransposed_output, "decode", "merged"),
    PassBug(
        "parts joined in another order than split",
        "merge_projections",
        lambda m: m.setattr(merge_projections, "Concat", lambda parts: Concat(parts[::-1])),
    ),
    PassBug("merged weight of another layer", "merge_projections", first_group_again, "decode"),
    PassBug("sizes of the parts said the wrong way round", "merge_projections", said_the_wrong_way_round, "decode"),
    PassBug(
        "silu of the wrong half", "swiglu", arguments(swiglu, lambda program, node, x: (rolled(program, node, x),))
    ),
    PassBug(
        "residual dropped", "residual_norm", arguments(residual_norm, lambda program, node, *a: (a[0], *a[:1], *a[2:]))
    ),
    PassBug(
        "normed and sum swapped",
        "residual_norm",
        lambda m: m.setattr(residual_norm, "take", lambda program, node, x, i: core.take(program, node, x, 1 - i)),
        "decode",
    ),
    PassBug("weight of another norm", "residual_norm", arguments(residual_norm, first_weight_like(2))),
    PassBug("a residual taken for dead", "dead_code", afterwards(dead_code.DeadCode, without_the_last_residual)),
]


def said_the_wrong_way_round(m: Patch) -> None:
    """The parts of a split are right, but said to have each other's sizes."""
    plain = merge_projections.split

    def split(program: Program, at: fx.Node, x: fx.Node, sizes: Any) -> list[fx.Node]:
        parts = plain(program, at, x, sizes)
        parts[0].args[0].meta["spec"] = parts[0].args[0].meta["spec"][::-1]  # type: ignore[union-attr, index]
        return parts

    m.setattr(merge_projections, "split", split)
