"""Checks and times of the judge that measures, on the host in place of a GPU: real kernels through the interpreter,
right ones and planted ones. Times are of the host and mean nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dsv2_compile.autotune.judges import judge_for
from dsv2_compile.autotune.measure import speed, worker
from dsv2_compile.autotune.measure.answers import remembering
from dsv2_compile.autotune.measure.bench import COLD, copies, open_bench
from dsv2_compile.autotune.measure.jobs import Compare, Measure, Race, Step, Subject, Verify
from dsv2_compile.autotune.predict import bound
from dsv2_compile.autotune.record import PREDICTED
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.trial import FAILED, OK, REFUSED, WRONG
from dsv2_compile.backends.cuda.pool import Pool
from dsv2_compile.devices.identify import identify, profile_of
from dsv2_compile.kernels.gpu.cases import case_for, follower
from dsv2_compile.kernels.gpu.check import check, on_host
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.runtime.native.driver import DriverError
from tests.planted_calls import CALLS
from tests.planted_edits.core import ORDER
from tests.planted_kernels import H800, planted, plants


@pytest.fixture(scope="module")
def bench():
    return open_bench(H800, speed.on_host(H800), host=True)


@pytest.fixture
def answer(bench, monkeypatch):
    monkeypatch.setattr(worker, "FEW", 1)
    monkeypatch.setattr(worker, "MANY", 1)
    monkeypatch.setattr(worker, "ATTEMPTS", 1)
    return worker.answering(bench, H800)


def subject(call, config):
    config = {"num_warps": 4, "num_stages": 1, **config}
    steps = [Step(call.kernel, call.dims, pairs(config))]
    if (after := follower(call, config)) is not None:
        default = KERNELS[after.kernel].default(dict(after.dims), H800)
        steps.append(Step(after.kernel, after.dims, pairs(default)))
    return Subject(call, tuple(steps))


def subjects(kernel):
    return [subject(call, config) for call, configs in CALLS[kernel].items() for config in configs]


def split():
    """A product whose K is split, and the sum that follows."""
    return next(s for s in subjects("linear") if len(s.steps) == 2)


# right ones


@pytest.mark.parametrize("kernel", ["rms_norm", "latent_cache", "gate", "embedding"])
def test_right_kernels_pass(kernel, answer, bench):
    one = subjects(kernel)[0]
    held = len(bench._device.driver._blocks)
    found, last = answer(Measure(one))
    assert found.status == OK and not last, found
    assert found.microseconds > 0 and found.facts["repeats"] == 2 and found.facts["rotated"] == COLD
    for job in (Verify(one, 0, (1, 2)), Verify(one, 7, (3,)), Race(one, 3, 60.0)):
        found, last = answer(job)
        assert found.status == OK and not last, found
    assert found.facts == {"runs": 3}
    bench._forget()
    assert len(bench._device.driver._blocks) <= held, "memory is given back"


def test_what_follows_is_checked_and_timed_with_it(answer, monkeypatch):
    one = split()
    assert answer(Measure(one))[0].status == OK
    edit = next(p.edit for p in plants() if p.call.kernel == "split_k_sum")
    monkeypatch.setitem(KERNELS, "split_k_sum", planted("split_k_sum", edit))
    found, _ = answer(Measure(one))
    assert found.status == WRONG and "out" in found.reason


def test_two_are_timed_in_turns(answer):
    first, second = subjects("rms_norm")[0], subjects("rms_norm")[0]
    second = replace(second, steps=(replace(second.steps[0], config_pairs=pairs({"num_warps": 8, "num_stages": 1})),))
    found, _ = answer(Compare(first, second, 2))
    assert found.status == OK and found.microseconds > 0 and found.facts["microseconds"] > 0


# wrong ones


SMALL = ("linear", "linear_swiglu", "rms_norm", "embedding", "moe_combine", "argmax", "gate")


def chosen():
    """Two plants of each kind, of the smaller kernels. Programs run in one order here, so order is left out."""
    found = {}
    for plant in plants():
        if plant.edit.kind != ORDER and plant.call.kernel in (
            "linear",
            "linear_swiglu",
            "rms_norm",
            "embedding",
            "moe_combine",
            "argmax",
            "gate",
        ):
            found.setdefault(plant.edit.kind, {}).setdefault(plant.call.kernel, plant)
    return [p for by_kernel in found.values() for p in list(by_kernel.values())[:2]]


@pytest.mark.parametrize("plant", chosen(), ids=lambda p: p.name)
def test_planted_kernels_are_found(plant, answer, monkeypatch):
    kernel = planted(plant.call.kernel, plant.edit)
    monkeypatch.setitem(KERNELS, plant.call.kernel, kernel)
    one = subject(plant.call, dict(plant.config))
    jobs = [Measure(one), *(Verify(one, shape, (1,)) for shape in range(8))]
    statuses = []
    for job in jobs:
        statuses.append(answer(job)[0].status)
        if statuses[-1] != OK:
            break
    assert statuses[-1] in (WRONG, FAILED)


def test_a_write_behind_an_output_is_found_inside_the_allocation(answer, monkeypatch):
    kernel = KERNELS["rms_norm"]
    grid = lambda dims, config, sizes: (sizes["rows"] + 1,)
    monkeypatch.setitem(KERNELS, "rms_norm", replace(kernel, grid=grid))
    one = subjects("rms_norm")[0]
    found, _ = answer(Measure(one))
    assert found.status == WRONG and "past its end" in found.reason


def test_other_bits_in_a_later_run_are_a_race(bench, answer, monkeypatch):
    launches, real = [], bench._launches

    def spoiled(one, case, places):
        work = real(one, case, places)

        def run():
            launches.append(None)
            work()
            if len(launches) == 4:
                bench._device.driver.block(places["out"])[0] ^= 1

        return run

    monkeypatch.setattr(bench, "_launches", spoiled)
    found, _ = answer(Race(subjects("rms_norm")[0], 10, 60.0))
    assert found.status == WRONG and found.reason == "out is not the same in run 4"


def test_few_runs_are_told():
    one = subjects("rms_norm")[0]
    found, _ = worker.answering(open_bench(H800, speed.on_host(H800), host=True), H800)(Race(one, 1000, 0.0))
    assert found.status == OK and found.facts == {"runs": 1}


# what a driver says


class Failing:
    """A bench whose driver fails with ``code``; ``lost``: and is lost with it."""

    def __init__(self, code, lost):
        self.code, self.lost = code, lost

    def check(self, subject, seed):
        raise DriverError(self.code, "as the test wants")

    def sound(self):
        if self.lost:
            raise DriverError(self.code)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", REFUSED),
        ("CUDA_ERROR_INVALID_VALUE", REFUSED),
        ("CUDA_ERROR_UNKNOWN", FAILED),
    ],
)
def test_errors_that_pass(code, status):
    found, last = worker.answering(Failing(code, False), H800)(Measure(subjects("rms_norm")[0]))
    assert found.status == status and code in found.reason and not last


@pytest.mark.parametrize("code", ["CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_ECC_UNCORRECTABLE"])
def test_errors_that_do_not_pass_end_the_process(code):
    found, last = worker.answering(Failing(code, True), H800)(Measure(subjects("rms_norm")[0]))
    assert last and found.crashed and found.reason == f"the GPU has faulted: {code}"


# references


def test_a_reference_is_computed_once_for_the_knobs_it_reads():
    one, seen = split().call, []
    case = case_for(one)
    real = case.kernel.reference

    def counted(dims, sizes, **tensors):
        seen.append(dims["SPLIT_K"])
        return real(dims, sizes, **tensors)

    kept = remembering(replace(case, kernel=replace(case.kernel, reference=counted)))
    base = next(s for s in subjects("linear") if s.call == one).steps[0].config
    for block, parts in ((16, 1), (32, 1), (16, 2), (32, 2), (16, 1)):
        config = {**base, "BLOCK_N": block, "SPLIT_K": parts}
        assert all(e.passed for e in check(kept, "bf16", config, on_host, seed=4))
    assert seen == [1, 2]
    check(kept, "bf16", {**base, "SPLIT_K": 1}, on_host, seed=5)
    assert seen == [1, 2, 1]


@pytest.mark.parametrize(
    ("nbytes", "count"), [(1 << 10, 256), (50 << 20, 3), (100 << 20, 3), (1 << 30, 3), (3 << 30, 1)]
)
def test_copies_are_beyond_the_cache(nbytes, count):
    assert copies(nbytes, 50 << 20) == count
    assert count == 256 or count * nbytes >= 3 * (50 << 20)


# the GPU


def test_a_gpu_is_known_by_its_name():
    names = {"NVIDIA H200": "h200", "NVIDIA H20": "h20", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H800": "h800"}
    assert {name: profile_of(name, "sm_90") for name in names} == names
    assert profile_of("NVIDIA GeForce RTX 4090", "sm_89") == "rtx4090"
    assert profile_of("NVIDIA A100-SXM4-80GB", "sm_80") == "a100"
    assert profile_of("NVIDIA H200", "sm_80") == profile_of("Tesla T4", "sm_75") == ""


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA GH200 480GB", "sm_90"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "sm_90"),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "sm_80"),
        ("NVIDIA GB200", "sm_100"),
        ("NVIDIA GeForce RTX 4090 D", "sm_89"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "sm_89"),
    ],
)
def test_a_gpu_whose_name_has_that_of_another_in_it_has_no_profile(name, capability):
    assert profile_of(name, capability) == ""


def test_a_gpu_that_is_not_here_is_not_measured_on(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert isinstance(identify(), str)
    with Pool(1) as pool, judge_for(H800, pool, predict=False) as judge:
        assert judge.provenance == PREDICTED and judge.device == ""


def test_references_of_speed_are_run(bench):
    found = bench.reference()
    assert found.keys() == {"copy", "product"} and min(found.values()) > 0
    assert min(bench.rates()) > 0
    fastest = bench.rates()
    bench.reference()
    assert all(now >= before for now, before in zip(bench.rates(), fastest, strict=True))


def test_references_of_speed_are_compiled_for_every_gpu():
    with Pool(1) as pool:
        found = speed.compiled(H800, pool)
    assert {n: r.step.cubin.image[:4] for n, r in found.items()} == dict.fromkeys(("copy", "product"), b"\x7fELF")
    assert found["product"].step.config["SPLIT_K"] == 1


def test_the_bound_counts_the_experts_that_are_hit(bench):
    call = next(c for c in CALLS["moe_up"] if dict(c.sizes)["rows"] * dict(c.dims)["TOP_K"] > 1)
    one = subject(call, KERNELS["moe_up"].default(dict(call.dims), H800))
    offsets = case_for(call).inputs(torch.Generator().manual_seed(0))["offsets"].tolist()
    hit = sum(b > a for a, b in pairwise(offsets))
    assert dict(bench.timed(one).sizes) == {**dict(call.sizes), "experts": hit}
    few = replace(call, sizes=(*call.sizes, ("experts", 1)))
    assert bound(few, H800) < bound(bench.timed(one), H800) <= bound(replace(few, sizes=all_experts(call)), H800)


def all_experts(call):
    return (*call.sizes, ("experts", dict(call.dims)["EXPERTS"]))
