"""Linear kernels on the host beyond their default tiles: forms of a tile, split K to its end, order of programs."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from dsv2_compile.kernels.gpu.cases.linear import CASES
from dsv2_compile.kernels.gpu.check import check, normal, on_host
from dsv2_compile.kernels.gpu.linear import HEAD_LINEAR, LINEAR, LINEAR_SWIGLU, SPLIT_K_SUM
from dsv2_compile.kernels.gpu.tiles import part_of
from dsv2_compile.targets import GPUS

FORMS = {
    "one row": {"BLOCK_M": 1, "BLOCK_N": 16, "BLOCK_K": 128, "GROUP_M": 1},
    "one row, wide": {"BLOCK_M": 1, "BLOCK_N": 64, "BLOCK_K": 1024, "GROUP_M": 4},
    "swapped": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP_M": 2},
    "swapped, wide": {"BLOCK_M": 32, "BLOCK_N": 256, "BLOCK_K": 256, "GROUP_M": 8},
    "plain, few rows": {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP_M": 16},
    "plain": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 1},
    "plain, large": {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "GROUP_M": 3},
}
LAUNCH = {"num_warps": 4, "num_stages": 1}
DIMS = {"N": 70, "K": 300, "X_STRIDE": 301, "OUT_STRIDE": 77, "INDEXED": True}
ROWS = 19


def linear_inputs(kind: torch.dtype) -> dict[str, torch.Tensor | None]:
    g = torch.Generator().manual_seed(3)
    return {
        "x": normal(g, 20, 301).to(kind),
        "index": torch.randint(20, (ROWS,), generator=g, dtype=torch.int32),
        "w": normal(g, 70, 300, scale=0.1).to(kind),
        "out": None,
        "partial": None,
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["linear", "linear_swiglu", "head_linear"])
def test_every_form_of_a_tile_computes_the_reference(name, form):
    cases = [c for c in CASES[name] if c.sizes["rows"] * c.dims["N"] < 3000]
    several_tiles = max(cases, key=lambda c: c.sizes["rows"] * (c.dims["N"] % 64 != 0))
    for case, dtype in ((several_tiles, "bf16"), (cases[1], "fp32"), (cases[0], "fp16")):
        config = {**FORMS[form], "SPLIT_K": int(case.dims.get("SPLIT_K", 1)), **LAUNCH}
        for error in check(case, dtype, config, on_host):
            assert error.passed, (case.name, error)


@pytest.mark.parametrize(("form", "split"), [*((form, 3) for form in FORMS), ("swapped", 2), ("plain", 5)])
def test_split_k_then_sum_is_the_linear(form, split):
    tensors = linear_inputs(torch.bfloat16)
    expected = LINEAR.reference(
        DIMS, {"rows": ROWS}, **{n: t if n == "index" else t.double() for n, t in tensors.items() if t is not None}
    )["out"][:, :70]
    partial = torch.full((split, ROWS, 70), float("nan"))
    config = {**FORMS[form], "SPLIT_K": split, **LAUNCH}
    on_host(LINEAR, DIMS, config, {"rows": ROWS}, "bf16", {**tensors, "partial": partial})
    assert (partial.double().sum(0) - expected).norm() <= 2.0**-20 * expected.norm()
    assert all(not p.any() for p in partial[-(-300 // part_of(300, split)) :]), "an empty part is not zero"

    out = torch.full((ROWS, 77), float("nan"), dtype=torch.bfloat16)
    dims = {"N": 70, "OUT_STRIDE": 77, "SPLIT_K": split}
    on_host(SPLIT_K_SUM, dims, {"BLOCK": 32, **LAUNCH}, {"rows": ROWS}, "bf16", {"partial": partial, "out": out})
    assert (out[:, :70].double() - expected).norm() <= 2.0**-8 * expected.norm()
    assert out[:, 70:].isnan().all()
    total = partial[0].clone()
    for p in partial[1:]:
        total += p
    assert torch.equal(out[:, :70], total.to(torch.bfloat16)), "parts were not summed in their order"


@pytest.mark.parametrize("form", ["one row, wide", "swapped", "plain"])
def test_the_order_of_programs_changes_no_bit(form):
    results = []
    config = {**FORMS[form], "SPLIT_K": 2, **LAUNCH}
    count = int(LINEAR.grid(DIMS, config, {"rows": ROWS})[0]) * 2
    for order in (list(range(count)), list(reversed(range(count)))):
        partial = torch.full((2, ROWS, 70), float("nan"))
        tensors = {**linear_inputs(torch.float16), "partial": partial}
        on_host(LINEAR, DIMS, config, {"rows": ROWS}, "fp16", tensors, order)
        results.append(partial)
    assert torch.equal(*results)


@pytest.mark.parametrize("form", FORMS)
def test_a_tile_belongs_to_one_program(form):
    """Written twice would be a race on a GPU, and no run on the host could show it."""
    config = {**FORMS[form], "SPLIT_K": 1, **LAUNCH}
    rows = 4 * config["BLOCK_M"] + 3
    dims = {**DIMS, "K": 16, "X_STRIDE": 16, "INDEXED": False}
    count = int(LINEAR.grid(dims, config, {"rows": rows})[0])
    g = torch.Generator().manual_seed(0)
    tensors = {"x": normal(g, rows, 16).float(), "w": normal(g, 70, 16).float(), "index": None, "partial": None}
    written = torch.zeros(rows, 77, dtype=torch.int32)
    for program in range(count):
        out = torch.full((rows, 77), float("nan"))
        on_host(LINEAR, dims, config, {"rows": rows}, "fp32", {**tensors, "out": out}, [program])
        written += ~out.isnan()
    assert (written[:, :70] == 1).all() and not written[:, 70:].any()


SHAPES = [(2112, 5120), (24576, 1536), (5120, 16384), (2048, 10944), (102400, 5120), (160, 5120), (5, 3), (576, 2048)]


@pytest.mark.parametrize("gpu", GPUS)
def test_defaults_fit_the_gpu_and_leave_no_part_empty(gpu):
    target = GPUS[gpu]
    for (n, k), rows in itertools.product(SHAPES, (1, 2, 16, 17, 64, 65, 512, 8192)):
        dims = {"N": n, "K": k, "X_STRIDE": k, "OUT_STRIDE": n, "INDEXED": False, "ROWS_HINT": rows}
        config = LINEAR.default(dims, target)
        assert (config["SPLIT_K"] - 1) * part_of(k, config["SPLIT_K"]) < k
        assert LINEAR.default({**dims, "SPLIT_K": 1}, target)["SPLIT_K"] == 1
        heads = {"HEADS": 16, "N": n, "K": k, "X_ROW": 16 * k, "X_HEAD": k, "OUT_ROW": 16 * n, "OUT_HEAD": n}
        swiglu = {"N": n, "K": k, "X_STRIDE": k, "ROWS_HINT": rows}
        for kernel, given, weights in (
            (LINEAR, dims, 1),
            (LINEAR_SWIGLU, swiglu, 2),
            (HEAD_LINEAR, {**heads, "ROWS_HINT": rows}, 1),
        ):
            config = kernel.default(given, target)
            loads = 2 * config["BLOCK_K"] * (config["BLOCK_M"] + weights * config["BLOCK_N"]) * config["num_stages"]
            assert config["BLOCK_M"] == 1 or loads <= target.architecture.shared_per_block
            constants = kernel.constants(given, config)
            assert "ROWS_HINT" not in constants
            assert sorted([*kernel.args, *constants]) == sorted(kernel.fn.arg_names)


def test_a_wrong_kernel_is_noticed():
    case = next(c for c in CASES["linear"] if c.dims["INDEXED"] and c.dims["SPLIT_K"] == 1)
    config = {**FORMS["plain"], "SPLIT_K": 1, **LAUNCH}
    assert all(e.passed for e in check(case, "bf16", config, on_host))
    short = dataclasses.replace(LINEAR, constants=lambda d, c: {**LINEAR.constants(d, c), "K": int(d["K"]) - 1})
    assert not any(e.passed for e in check(dataclasses.replace(case, kernel=short), "bf16", config, on_host))
