"""Cases of any call: the call itself and held-out ones, with which a configuration is checked before it is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsv2_compile.autotune.tasks import tasks_of
from dsv2_compile.backends.cuda.lowering import lower
from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.kernels.gpu import check as checks
from dsv2_compile.kernels.gpu.cases import LIMIT, case_for, follower, held_out
from dsv2_compile.kernels.gpu.check import check, on_host, prepared
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call
from dsv2_compile.kernels.gpu.shapes import shapes
from dsv2_compile.targets import target
from tests import host_plans, planted_kernels
from tests.native_plans import LIMITS, PAGES

H800 = target("h800")
LITTLE = 2e6
"""FLOP of a held-out case for the interpreter."""


def model(preset, **changes):
    small = {"num_hidden_layers": 2, "vocab_size": 96, "bos_token_id": 94, "eos_token_ids": (95,), "hidden_size": 64}
    narrow = {"intermediate_size": 48, "moe_intermediate_size": 16, "kv_lora_rank": 32, "num_attention_heads": 2}
    return replace(PRESETS[preset], **small, **narrow, **changes)


MODELS = {
    "grouped": model("tiny", q_lora_rank=24, n_routed_experts=8, n_group=4, num_experts_per_tok=2),
    "plain": model("tiny-lite", n_routed_experts=5, num_experts_per_tok=2),
}


def calls(config, dtype="bf16", gpu=H800):
    """Every call of the programs of a model, and those of kernels that only some configurations or samplers call."""
    drafts = [
        lower(host_plans.program(config, phase, 64 * PAGES), phase, gpu, dtype, limits, PAGES)
        for phase, limits in LIMITS.items()
    ]
    found = [task.call for task in tasks_of(drafts, gpu)]
    have = {c.kernel for c in found}
    rare = [s for s in shapes(config, 4, 2, 6) if s.kernel not in have]
    return found + [Call.of(KERNELS[s.kernel], s.dims, {"rows": 2, "batch": 2, "context": 40}, dtype) for s in rare]


CALLS = list(dict.fromkeys(call for config in MODELS.values() for call in calls(config)))
FORMS = list({(c.kernel, *(v for _, v in c.dims if isinstance(v, bool))): c for c in reversed(CALLS)}.values())
"""A call of each kernel and each of its flags."""


def name(call):
    return f"{call.kernel}-{CALLS.index(call)}"


def test_every_kernel_is_called():
    assert {call.kernel for call in CALLS} == {call.kernel for call in FORMS} == set(KERNELS)


@pytest.mark.parametrize("call", CALLS, ids=name)
def test_any_call_has_cases_of_its_own_dims(call):
    kernel = KERNELS[call.kernel]
    config = kernel.default(dict(call.dims), H800)
    same, others = case_for(call), held_out(call, config, LITTLE)
    assert all(same.sizes[n] == v for n, v in call.sizes if n in same.sizes and n != "batch")
    assert len(others) >= 8 and len({c.name for c in others}) == len(others)
    assert all(c.kernel is kernel and dict(c.dims) == dict(call.dims) for c in (same, *others))
    errors = check(same, call.dtype, config, lambda *args: None)
    assert errors and not all(e.passed for e in errors), "nothing was run, and it passes"


@pytest.mark.parametrize("call", FORMS, ids=name)
def test_the_default_passes_every_case(call):
    config = KERNELS[call.kernel].default(dict(call.dims), H800)
    for case in (case_for(call), *held_out(call, config, LITTLE)):
        errors = check(case, call.dtype, config, on_host)
        assert errors and all(e.passed for e in errors), (case.name, errors)


SPLIT = Call.of(
    KERNELS["linear"],
    {"N": 33, "K": 400, "X_STRIDE": 405, "OUT_STRIDE": 40, "INDEXED": True, "ROWS_HINT": 16},
    {"rows": 5, "batch": 5, "context": 5},
    "bf16",
)
TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 64, "GROUP_M": 2, "num_warps": 4, "num_stages": 1}


@pytest.mark.parametrize("split", [1, 2, 8])
def test_a_split_product_is_checked_by_its_parts_and_by_their_sum(split):
    config = {**TILE, "SPLIT_K": split}
    after = follower(SPLIT, config)
    assert (after is None) == (split == 1)
    if after is None:
        then = None
    else:
        assert after.kernel == "split_k_sum" and dict(after.dims) == {"N": 33, "OUT_STRIDE": 40, "SPLIT_K": split}
        then = KERNELS[after.kernel].default(dict(after.dims), H800)
    for case in (case_for(SPLIT), *held_out(SPLIT, config)[:2]):
        errors = check(case, "bf16", config, on_host, then=then)
        assert [e.output for e in errors] == (["partial", "out"] if split > 1 else ["out"])
        assert all(e.passed for e in errors), errors
        assert [e.output for e in check(case, "bf16", config, on_host)] == [errors[0].output]


def test_a_sum_that_leaves_out_a_part_is_found_though_the_parts_are_right():
    def forgetful(kernel, dims, config, sizes, dtype, tensors):
        if kernel.name == "split_k_sum":
            tensors = {**tensors, "partial": tensors["partial"][:1].repeat(2, 1, 1)}
        on_host(kernel, dims, config, sizes, dtype, tensors)

    parts, total = check(
        case_for(SPLIT), "bf16", {**TILE, "SPLIT_K": 2}, forgetful, then={"BLOCK": 32, "num_warps": 1, "num_stages": 1}
    )
    assert parts.passed and not total.passed


def test_tensors_of_a_call_are_those_that_its_configuration_needs():
    whole, parts = (prepared(case_for(SPLIT), "bf16", {**TILE, "SPLIT_K": split}) for split in (1, 4))
    assert list(whole) == list(parts) == ["x", "index", "w", "out", "partial"]
    assert whole["partial"] is None and whole["out"].shape == (5, 40) and whole["out"].isnan().all()
    assert parts["out"] is None and parts["partial"].shape == (4, 5, 33) and parts["partial"].dtype == torch.float32


def test_held_out_cases_of_a_large_model_are_small():
    hard = [s for s in shapes(PRESETS["v2"], 2048, 128, 264) if s.kernel not in ("moe_up", "moe_down")]
    for shape in hard:
        call = Call.of(KERNELS[shape.kernel], shape.dims, {"rows": 2048, "batch": 1, "context": 8192}, "bf16")
        config = KERNELS[shape.kernel].default(shape.dims, H800)
        found = held_out(call, config)
        assert len(found) >= 8
        for case in found:
            flops = KERNELS[shape.kernel].cost(shape.dims, case.sizes).flops
            assert flops <= LIMIT or case.sizes["rows"] <= 16, (case.name, flops)


@pytest.mark.parametrize(("kernel", "name", "large"), [("linear", "w", 5000), ("mla_decode", "cache", 3000)])
def test_large_weights_and_caches_reach_the_reference_as_they_are_stored(kernel, name, large, monkeypatch):
    monkeypatch.setattr(checks, "LARGE", large)
    monkeypatch.setattr(checks, "PERIOD", large - 1)
    call, config = next((c, k) for c, k in planted_kernels.calls() if c.kernel == kernel)
    case = case_for(call)
    given = case.inputs(torch.Generator().manual_seed(0))
    assert [n for n, t in given.items() if t is not None and t.numel() >= large] == [name]
    assert given[name].dtype == torch.bfloat16 and given["x" if name == "w" else "q"].dtype == torch.float64
    assert all(e.passed for e in check(case, "bf16", config, on_host))


def test_a_small_error_in_one_head_of_many_is_found():
    """It is too small for the sum of squares of all heads, and for the largest value."""
    call = next(c for c in CALLS if c.kernel == "rope_query")
    dims = {**dict(call.dims), "HEADS": 64, "Q_ROW": 64 * 24, "NOPE": 8, "ROPE": 16, "OUT_HEAD": 16, "OUT_OFFSET": 0}
    case = case_for(Call.of(KERNELS["rope_query"], dims | {"OUT_ROW": 1024}, {"rows": 4}, "bf16"))
    config = case.kernel.default(case.dims, H800)

    def slightly_wrong(kernel, dims, config, sizes, dtype, tensors):
        on_host(kernel, dims, config, sizes, dtype, tensors)
        tensors["out"][1, 320:336] *= 1.012

    (error,) = check(case, "bf16", config, slightly_wrong)
    assert not error.passed and error.l2 <= error.limit_l2 and error.largest <= error.limit_largest
    assert "local" in str(error)
