"""The kernels of a mixture of experts together, in every form of their tiles, with programs in any order."""

from __future__ import annotations

import random

import pytest
import torch

from dsv2_compile.kernels.gpu.cases import CASES
from dsv2_compile.kernels.gpu.check import check, on_host
from dsv2_compile.kernels.gpu.dispatch import DISPATCH
from dsv2_compile.kernels.gpu.gate import GATE
from dsv2_compile.kernels.gpu.moe import MOE_COMBINE, MOE_DOWN, MOE_UP
from dsv2_compile.kernels.ops.linear import swiglu
from dsv2_compile.kernels.ops.moe import experts, gate
from dsv2_compile.plan.expr import evaluate, symbol
from dsv2_compile.targets import target

H800 = target("h800")
FORMS = [
    {"BLOCK_M": 1, "BLOCK_N": 8, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1},
    {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
]


def _case(kernel, name):
    return next(c for c in CASES[kernel] if c.name == name)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f['BLOCK_M']}x{f['BLOCK_N']}x{f['BLOCK_K']}")
@pytest.mark.parametrize("kernel", ["moe_up", "moe_down"])
@pytest.mark.parametrize("name", ["experts without tokens", "5 experts, N 33, K 70", "more experts than entries"])
def test_every_form_of_a_tile_computes_the_same(kernel, name, form):
    for error in check(_case(kernel, name), "bf16", form, on_host):
        assert error.passed, error


@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_the_gate_does_not_depend_on_tokens_per_program(tokens):
    config = {"TOKENS": tokens, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}
    for error in check(_case("gate", "a prefill tile, not full"), "bf16", config, on_host):
        assert error.passed, error


@pytest.mark.parametrize("block", [16, 64, 4096])
def test_the_order_of_entries_does_not_depend_on_the_block(block):
    config = {"BLOCK": block, "num_warps": 4, "num_stages": 1}
    for error in check(_case("dispatch", "every other expert without tokens"), "bf16", config, on_host):
        assert error.passed, error


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("gate", "equal triples across groups"),
        ("dispatch", "every other expert without tokens"),
        ("moe_up", "several tiles of an expert"),
        ("moe_down", "several tiles of an expert"),
        ("moe_combine", "9 rows of 257, top 8, shared"),
    ],
)
def test_programs_may_run_in_any_order(kernel, name):
    case = _case(kernel, name)
    config = case.kernel.default(case.dims, H800)
    results = []

    def launch(order):
        def run(kernel, dims, config, sizes, dtype, tensors):
            on_host(kernel, dims, config, sizes, dtype, tensors, order)
            results.append({n: tensors[n].clone() for n in kernel.outputs})

        return run

    count = 1
    for g in case.kernel.grid(case.dims, config, case.sizes):
        count *= evaluate(g, {})
    assert count > 1
    shuffled = random.Random(0).sample(range(count), count)
    for order in (None, range(count - 1, -1, -1), shuffled):
        assert all(e.passed for e in check(case, "bf16", config, launch(order)))
    for other in results[1:]:
        assert all(torch.equal(results[0][n], other[n]) for n in results[0])


@pytest.mark.parametrize("block_m", [1, 16, 128])
def test_the_grid_has_a_program_for_every_tile_that_any_routing_needs(block_m):
    dims, config = {"EXPERTS": 12, "TOP_K": 3, "N": 100, "K": 64}, {"BLOCK_M": block_m, "BLOCK_N": 64}
    (size,) = MOE_UP.grid(dims, config, {"rows": symbol("rows")})
    rng = random.Random(0)
    for rows in (0, 1, 5, 33, 400):
        programs = evaluate(size, {"rows": rows})
        for _ in range(50):
            used = rng.sample(range(12), rng.randint(1, 12))
            ids = [rng.choice(used) for _ in range(rows * 3)]
            assert programs >= 2 * sum(-(-ids.count(e) // block_m) for e in range(12))


@pytest.mark.parametrize("kernel", ["moe_up", "moe_down"])
@pytest.mark.parametrize("name", ["all on the last", "experts without tokens"])
def test_surplus_programs_write_nothing(kernel, name):
    case = _case(kernel, name)
    config = case.kernel.default(case.dims, H800)
    (size,) = case.kernel.grid(case.dims, config, case.sizes)
    touched = []

    def launch(kernel, dims, config, sizes, dtype, tensors):
        counts = tensors["offsets"].diff().tolist()
        columns = -(-dims["N"] // config["BLOCK_N"])
        needed = columns * sum(-(-n // config["BLOCK_M"]) for n in counts)
        assert needed < size
        on_host(kernel, dims, config, sizes, dtype, tensors, range(needed, size))
        touched.append((~tensors["out"].isnan()).sum().item())
        on_host(kernel, dims, config, sizes, dtype, tensors, range(needed))

    assert all(e.passed for e in check(case, "bf16", config, launch))
    assert touched == [0]


@pytest.mark.parametrize("rows", [1, 21])
def test_the_kernels_in_a_row_are_a_mixture_of_experts(rows):
    """Gate, dispatch, the two products and the sum in fp32, against the dialect's operators in fp64."""
    count, top_k, hidden, inter = 12, 3, 48, 40
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g) / shape[-1] ** 0.5

    x, w_gate = normal(rows, hidden) * 4, normal(count, hidden) * 8
    up, down = normal(count, 2 * inter, hidden), normal(count, hidden, inter)
    shared = swiglu(x @ up[0].T) @ down[0].T
    routing = {"EXPERTS": count, "TOP_K": top_k, "ROWS_HINT": rows}
    tensors = {
        "ids": torch.full((rows, top_k), -1, dtype=torch.int32),
        "weights": torch.full((rows, top_k), float("nan")),
        "offsets": torch.full((count + 1,), -1, dtype=torch.int32),
        "order": torch.full((rows * top_k,), -1, dtype=torch.int32),
        "middle": torch.full((rows * top_k, inter), float("nan")),
        "parts": torch.full((rows * top_k, hidden), float("nan")),
        "out": torch.full((rows, hidden), float("nan")),
    }

    def launch(kernel, dims, **args):
        given = {n: tensors[n] for n in kernel.args if n in tensors} | args
        on_host(kernel, dims, kernel.default(dims, H800), {"rows": rows}, "fp32", given)

    gating = {"K": hidden, "GROUPS": 4, "TOPK_GROUPS": 2, "SCALE": 16.0, "NORMALIZE": False}
    launch(GATE, routing | gating, x=x, w=w_gate)
    launch(DISPATCH, routing)
    launch(MOE_UP, routing | {"N": inter, "K": hidden}, x=x, w=up, out=tensors["middle"])
    launch(MOE_DOWN, routing | {"N": hidden, "K": inter}, x=tensors["middle"], w=down, out=tensors["parts"])
    launch(MOE_COMBINE, {"N": hidden, "TOP_K": top_k, "SHARED": True}, shared=shared)

    wide = x.double()[None]
    ids, weights = gate(wide, w_gate.double(), top_k, 4, 2, 16.0, False)
    expected = experts(wide, ids, weights, up.double(), down.double())[0] + shared
    assert torch.equal(tensors["ids"].long(), ids[0])
    assert (tensors["out"] - expected).norm() < 1e-6 * expected.norm()
