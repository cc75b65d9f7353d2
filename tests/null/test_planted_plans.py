"""Faults planted in the launches of native plans: the proof on the host catches each and names its layer.

Each fault changes launches after lowering, where a wrong rule would show. The model is a twin of V2, with fp32
values, so that nothing hides in rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from dsv2_compile.backends.cuda import emit
from dsv2_compile.backends.cuda.draft import Draft, DraftLaunch
from dsv2_compile.backends.cuda.host import HostExecutor
from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.errors import NumericError
from dsv2_compile.kernels.gpu.interpret import AccessError
from dsv2_compile.kernels.gpu.shapes import PAGE
from dsv2_compile.pipeline.plan_engine import PlanEngine
from dsv2_compile.plan.expr import symbol
from dsv2_compile.plan.plan import Pointer
from dsv2_compile.targets import target
from dsv2_compile.verify import make_golden
from dsv2_compile.verify.check import check
from dsv2_compile.verify.passes import RandomWeights
from tests import host_plans

BATCH, POSITIONS, STEPS = 3, 128, 2
CONFIG = replace(PRESETS["v2"].twin(), max_position_embeddings=POSITIONS)
Change = Callable[[DraftLaunch], DraftLaunch]


def of(kernel: str, index: int, change: Change) -> Callable[[Draft], None]:
    """Change the ``index``-th launch of ``kernel``, where a program has so many."""

    def plant(draft: Draft) -> None:
        at = [i for i, x in enumerate(draft.launches) if x.request.kernel == kernel]
        if len(at) > index:
            draft.launches[at[index]] = change(draft.launches[at[index]])

    return plant


def dims(**new: Any) -> Change:
    """Other constants; a function gets the old value."""

    def change(x: DraftLaunch) -> DraftLaunch:
        old = dict(x.request.dims)
        made = {k: v(old[k]) if callable(v) else v for k, v in new.items()}
        return replace(x, request=replace(x.request, dims=tuple(sorted((old | made).items()))))

    return change


def argument(position: int, change: Callable[[Any], Any]) -> Change:
    def changed(x: DraftLaunch) -> DraftLaunch:
        args = list(x.args)
        args[position] = change(args[position])
        return replace(x, args=tuple(args), request=replace(x.request, aligned=()))

    return changed


def swapped(a: int, b: int) -> Change:
    def change(x: DraftLaunch) -> DraftLaunch:
        args = list(x.args)
        args[a], args[b] = args[b], args[a]
        return replace(x, args=tuple(args))

    return change


def beyond(nbytes: int) -> Callable[[Pointer], Pointer]:
    return lambda p: Pointer(p.buffer, p.offset + nbytes)


def next_layer(p: Pointer) -> Pointer:
    return Pointer(p.buffer, p.offset + symbol("slots") * (CONFIG.cache_dim * 4))


def named(name: str) -> Callable[[Pointer], Pointer]:
    return lambda p: Pointer(name, p.offset)


@dataclass(frozen=True)
class Fault:
    """``layer``: the first with wrong rows, None if only the logits are; ``culprit``: the layer to blame."""

    name: str
    layer: int | None
    culprit: int
    plant: Callable[[Draft], None]


def last_norm(change: Change) -> Callable[[Draft], None]:
    return lambda d: of("rms_norm", sum(x.request.kernel == "rms_norm" for x in d.launches) - 1, change)(d)


def weight_of(layer: int, name: str) -> Callable[[Pointer], Pointer]:
    return named(f"model.layers.{layer}.{name}.weight")


EXPERT = CONFIG.hidden_size * CONFIG.moe_intermediate_size * 8
LAST = CONFIG.num_hidden_layers - 1
FAULTS = [
    Fault("epsilon of a norm is 0.1", 0, 0, of("rms_norm", 0, dims(EPS=0.1))),
    Fault("latent norm without epsilon's size", 0, 0, of("latent_cache", 0, dims(EPS=0.3))),
    Fault("cosine and sine swapped", 0, 0, of("latent_cache", 0, swapped(2, 3))),
    Fault("cache rows go to the next layer's cache", 0, 0, of("latent_cache", 0, argument(6, next_layer))),
    Fault("queries rotated at the wrong offset", 1, 0, of("rope_query", 0, dims(OUT_OFFSET=lambda v: v - 2))),
    Fault("scores a tenth too large, decode", 1, 0, of("mla_decode", 0, dims(SCALE=lambda v: v * 1.1))),
    Fault("scores a tenth too large, prefill", 1, 0, of("mla_prefill", 0, dims(SCALE=lambda v: v * 1.1))),
    Fault("the residual is dropped", 1, 0, of("rms_norm", 2, dims(RESIDUAL=False))),
    Fault("router scale forgotten", 2, 1, of("gate", 0, dims(SCALE=1.0))),
    Fault("router weights normalised", 2, 1, of("gate", 0, dims(NORMALIZE=True))),
    Fault("one group more kept", 2, 1, of("gate", 0, dims(TOPK_GROUPS=lambda v: v + 1))),
    Fault("shared experts left out", 2, 1, of("moe_combine", 0, dims(SHARED=False))),
    Fault("an expert of each token left out", 2, 1, of("moe_combine", 0, dims(TOP_K=lambda v: v - 1))),
    Fault("o_proj of another layer", 1, 0, of("linear", 2, argument(2, weight_of(1, "self_attn.o_proj")))),
    Fault("final norm of another layer", None, LAST, last_norm(argument(3, weight_of(0, "input_layernorm")))),
    Fault("final residual dropped", None, LAST, last_norm(dims(RESIDUAL=False))),
]  # fmt: skip
MORE = {
    "latent norm without epsilon's size", "the residual is dropped", "router weights normalised", "one group more kept",
    "shared experts left out", "final residual dropped",
}  # fmt: skip
"""Of those, faults of a kernel that has another: for the slow tests."""
STRAY = {
    "key rotated at the slot instead of the position": (
        of("latent_cache", 0, swapped(4, 5)),
        "latent norm, RoPE and cache write, layer 0",
    ),
    "gate and up rows shifted by one": (
        of("linear_swiglu", 0, argument(1, beyond(CONFIG.hidden_size * 4))),
        "linear and SwiGLU, model.layers.0.",
    ),
    "weights of the next expert, up": (
        of("moe_up", 0, argument(1, beyond(EXPERT))),
        "experts, model.layers.1.mlp.experts.gate_up_proj",
    ),
}
"""Faults that reach outside a launch's own buffers, and how that launch is called."""


TOKENS = {
    "one token of the vocabulary left out": of("sample", 0, dims(VOCAB=lambda v: v - 1)),
    "temperature and top_p swapped": of("sample", 0, swapped(1, 2)),
    "random numbers for temperatures": of("sample", 0, argument(1, named("uniform"))),
}
"""Faults of the choice of the next tokens."""


@pytest.fixture(scope="module")
def model():
    programs = {p: host_plans.program(CONFIG, p, POSITIONS) for p in host_plans.PROGRAMS}
    source = RandomWeights(CONFIG, 0)
    return programs, source, make_golden(CONFIG, source, "float32", BATCH, POSITIONS, steps=STEPS)


def report(model: Any, plant: Callable[[Draft], None]) -> Any:
    programs, source, golden = model
    lowered = host_plans.lowered(programs, "fp32", BATCH, POSITIONS)
    for draft in lowered.values():
        plant(draft)
    plan = emit.plan(
        target("h800"), "fp32", PAGE, -(-POSITIONS // PAGE), {(p, p): d for p, d in lowered.items()},
        emit.uncompiled(emit.requests(lowered.values())),
    )  # fmt: skip
    executor = HostExecutor(plan, host_plans.stored(programs, plan, source), BATCH * plan.pages * PAGE)
    return check(PlanEngine(plan, CONFIG, executor, POSITIONS), CONFIG, golden, "planted", names=("batch",))


def test_without_a_fault_it_passes(model):
    assert report(model, lambda draft: None).passed


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=pytest.mark.slow if f.name in MORE else (), id=f.name) for f in FAULTS]
)
def test_a_fault_is_caught_and_its_layer_named(model, fault):
    found = report(model, fault.plant)
    assert not found.passed
    assert fault.layer in {f.layer for f in found.findings}, found.problems
    assert fault.culprit in {s for f in found.findings if f.layer == fault.layer for s in f.suspects}, found.problems


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_that_is_not_of_its_logits_is_caught(model, name):
    with pytest.raises(NumericError, match="The plan's next token of"):
        report(model, TOKENS[name])


@pytest.mark.parametrize("name", STRAY)
def test_a_launch_that_strays_is_stopped_and_named(model, name):
    plant, launch = STRAY[name]
    with pytest.raises(AccessError, match=re.escape(launch)):
        report(model, plant)
