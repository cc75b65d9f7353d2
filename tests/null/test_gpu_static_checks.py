"""What cannot launch is refused, with both numbers; what a cubin takes is read right. Nothing here is launched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsv2_compile import targets
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import compile_all, request
from dsv2_compile.backends.cuda.disassembly import Usage, examine
from dsv2_compile.backends.cuda.static_checks import blocks_per_sm, check
from dsv2_compile.kernels.gpu.aot import Cubin, Job, build, job
from dsv2_compile.kernels.gpu.linear import LINEAR
from dsv2_compile.kernels.gpu.norm import RMS_NORM
from dsv2_compile.targets import Architecture, target
from tests.gpu_fakes import DOUBLE, IDLE, MATMUL

H800, A100 = target("h800"), target("a100")


class Made:
    """A kernel compiled and taken apart; ``change`` gives its report with parts of it replaced."""

    def __init__(self, work: Job) -> None:
        self.job, self.cubin = work, build(work)
        self.usage = examine(self.cubin.image)

    def report(self, gpu=H800, cubin=None, usage=None, job=None):
        parts = (self.cubin, cubin), (self.usage, usage), (self.job, job)
        return check(*(replace(part, **(change or {})) for part, change in parts), gpu)

    def problems(self, *args, **changes):
        return list(self.report(*args, **changes).problems)


def matmul(gpu, dtype="bf16", **config):
    return Made(job(MATMUL, {"N": 256}, {**MATMUL.default({}, gpu), **config}, dtype, gpu))


@pytest.fixture(scope="module")
def norm():
    dims = {"N": 5120, "X_STRIDE": 5120, "EPS": 1e-6, "RESIDUAL": True, "INDEXED": False}
    return Made(job(RMS_NORM, dims, RMS_NORM.default(dims, H800), "bf16", H800))


@pytest.fixture(scope="module")
def unclaimed():
    return Made(job(DOUBLE, {}, DOUBLE.default({}, H800), "bf16", H800, {}))


def test_a_kernel_that_fits_has_no_problem(norm, unclaimed):
    assert norm.problems() == unclaimed.problems() == []
    report = norm.report()
    assert (report.spills, report.matrix) == (0, "none")
    assert report.blocks_per_sm >= 4


def signature(made, **types):
    return {"signature": tuple((n, types.get(n, k)) for n, k in made.job.signature)}


REFUSED = {
    "shared memory": (
        {"cubin": {"shared": 232449}},
        ["232449 bytes of shared memory per block, h800 allows 232448"],
    ),
    "static shared memory": (
        {"cubin": {"shared": 232448}, "usage": {"shared": 1025}},
        ["232449 bytes of shared memory per block, h800 allows 232448"],
    ),
    "threads": (
        {"cubin": {"warps": 33}, "usage": {"registers": 32}},
        [
            "1056 threads per block, h800 allows 1024",
            "the entry wants 256 threads per block, the launch gives 1056",
        ],
    ),
    "registers of a thread": (
        {"usage": {"registers": 256}},
        ["256 registers per thread, h800 allows 255"],
    ),
    "registers of a block": (
        {"cubin": {"warps": 12}, "usage": {"registers": 169}},
        [
            "the entry wants 256 threads per block, the launch gives 384",
            "67584 registers per block, h800 has 65536 per SM",
        ],
    ),
    "tensor memory": (
        {"cubin": {"tensor_memory": 128}},
        ["128 columns of tensor memory per block, h800 has 0"],
    ),
    "another architecture": (
        {"usage": {"architecture": "sm_89"}},
        ["the cubin is for sm_89, h800 is sm_90"],
    ),
    "another entry": (
        {"cubin": {"symbol": "rope"}},
        ["entries rms_norm in the PTX, expected rope alone"],
    ),
    "profiling": ({"cubin": {"profile_scratch": 64}}, ["64 bytes of profile scratch per block, 0 expected"]),
    "wide accesses": (
        {"usage": {"widest": 32}},
        ["accesses of 32 bytes, the pointers are claimed to be multiples of 16"],
    ),
    "accesses without a claim": (
        {"job": {"aligned": ()}},
        ["accesses of 16 bytes, the pointers are claimed to be multiples of 4"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_launch_is_refused_with_both_numbers(norm, name):
    changes, expected = REFUSED[name]
    report = norm.report(**changes)
    assert list(report.problems) == expected
    assert report.blocks_per_sm == 0


def test_limits_themselves_are_allowed(norm):
    assert norm.problems(cubin={"shared": 232448}, usage={"registers": 255}) == []


def test_parameters_that_are_not_those_of_the_kernel_are_refused(norm):
    args = norm.job.signature
    assert (
        norm.problems(job={"signature": args[:-1]})[0] == "the entry has 9 parameters, 8 expected (6 and 2 of scratch)"
    )
    assert norm.problems(job={"signature": (*args, ("more", "i32"))})[0].startswith("the entry has 9 parameters, 10")
    assert norm.problems(job=signature(norm, rows="i64")) == ["parameter rows is .u32 in the PTX, .u64 expected"]
    assert norm.problems(job=signature(norm, x="fp32")) == ["parameter x is .u64 in the PTX, .f32 expected"]


def test_dtypes_that_the_target_has_not_are_refused(norm, monkeypatch):
    a100 = {"usage": {"architecture": "sm_80"}}
    fp8 = signature(norm, x="*fp8e4nv")
    assert norm.problems(A100, **a100, job=fp8) == ["fp8e4nv is not supported on a100 (sm_80)"]
    assert norm.problems(target("l40s"), usage={"architecture": "sm_89"}, job=fp8) == []
    turing = Architecture("sm_75", "mma", 64 << 10, 65 << 10, 1024, 16, ("fp32", "fp16", "int8"))
    monkeypatch.setitem(targets.ARCHITECTURES, "sm_75", turing)
    t4 = replace(A100, name="t4", capability="sm_75")
    assert norm.problems(t4, usage={"architecture": "sm_75"}) == ["bf16 is not supported on t4 (sm_75)"]


def test_a_tile_too_large_for_one_architecture_is_refused_there_only():
    """Triton compiles it for both; between the two limits lies 166912 to 232448."""
    small, large = matmul(A100, num_stages=6), matmul(H800, num_stages=6)
    assert 166912 < small.cubin.shared < 232448 and 166912 < large.cubin.shared < 232448
    assert small.problems(A100) == [f"{small.cubin.shared} bytes of shared memory per block, a100 allows 166912"]
    assert large.problems(H800) == []


def test_a_cubin_is_refused_on_another_gpu_of_another_architecture():
    made = Made(job(DOUBLE, {}, DOUBLE.default({}, A100), "bf16", A100))
    assert made.problems(target("a800")) == []
    assert made.problems(H800) == ["the cubin is for sm_80, h800 is sm_90"]


MATRIX = {"mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTCHMMA"}


@pytest.mark.parametrize("name", ["a100", "l40s", "h800", "b200", "rtx5090"])
def test_the_matrix_instruction_is_that_of_the_architecture(name):
    gpu = target(name)
    made = matmul(gpu, BM=64, BN=64, num_warps=4, num_stages=2)
    report = made.report(gpu)
    assert (report.problems, report.matrix, report.spills) == ((), MATRIX[gpu.architecture.matrix], 0)
    assert made.usage.abi == (8 if name in ("b200", "rtx5090") else 7)
    assert bool(made.cubin.tensor_memory) == (name == "b200")


@pytest.mark.parametrize("gpu", ["a100", "h800", "b200"])
def test_a_kernel_that_writes_nothing_is_refused(gpu):
    made = Made(job(IDLE, {}, IDLE.default({}, target(gpu)), "bf16", target(gpu)))
    (problem,) = made.problems(target(gpu))
    assert problem.startswith("no instruction of idle writes global memory")


@pytest.mark.parametrize("columns", [512, 1024])
def test_tiles_beyond_tensor_memory_are_refused(columns, tmp_path):
    """Triton makes a trap of them and says nothing; the cubin itself would load."""
    gpu = target("b200")
    dims = {"N": 4096, "K": 1024, "X_STRIDE": 1024, "OUT_STRIDE": 4096, "INDEXED": False}
    config = {**LINEAR.default(dims, gpu), "BLOCK_M": 128, "BLOCK_N": columns, "BLOCK_K": 32, "num_stages": 1}
    (found,) = compile_all([request(LINEAR, dims, config, "bf16")], gpu, workers=1, cache=BuildCache(tmp_path))
    assert found.cubin.tensor_memory == columns
    if columns <= 512:
        assert found.ok and found.report.matrix == "UTCHMMA"
        return
    assert found.usage.instructions < 32 and "trap;" in found.cubin.ptx
    too_many, nothing = found.report.problems
    assert too_many == "1024 columns of tensor memory per block, b200 has 512"
    assert nothing.startswith("no instruction of linear writes global memory")


def test_a_tile_below_64_rows_does_not_reach_warp_groups():
    assert matmul(H800, BM=16, BN=64, num_warps=4, num_stages=2).report().matrix == "HMMA"
    assert matmul(H800, "fp8e4nv", BM=64, BN=64, num_warps=4, num_stages=2).report().matrix == "QGMMA"


def test_spills_are_seen():
    spilling, fitting = matmul(H800, num_warps=4, num_stages=2), matmul(H800, num_stages=2)
    assert spilling.report().spills >= 64
    assert spilling.usage.spill_stores > 10 and spilling.usage.spill_loads > 10
    assert (fitting.report().spills, fitting.usage.spill_stores, fitting.usage.spill_loads) == (0, 0, 0)
    assert spilling.problems() == [], "slow, but it runs"


def test_a_prefill_layer_uses_warp_groups_without_spills():
    dims = {"N": 3072, "K": 5120, "X_STRIDE": 5120, "OUT_STRIDE": 3072, "INDEXED": False}
    made = Made(job(LINEAR, dims, LINEAR.default(dims, H800), "bf16", H800))
    report = made.report()
    assert (report.problems, report.matrix, report.spills, made.usage.spill_stores) == ((), "HGMMA", 0, 0)
    assert report.blocks_per_sm >= 1


def usage(registers, architecture, shared=0):
    return Usage(architecture, 7, registers, 0, shared, 0, 0, (), 16, 100)


OCCUPANCY = [
    # by registers: 160 a thread after rounding, 3 warps in a quarter of the SM
    ("sm_90", 154, 4, 56320, 3),
    # by shared memory: 2 (94208 + 1024) <= 233472
    ("sm_90", 102, 8, 94208, 2),
    ("sm_90", 96, 4, 73728, 3),
    ("sm_90", 122, 4, 98304, 2),
    ("sm_90", 110, 8, 131072, 1),
    # by threads: 2048 / 1024 and 1536 / 1024
    ("sm_80", 32, 32, 0, 2),
    ("sm_89", 32, 32, 0, 1),
    # by blocks
    ("sm_80", 16, 1, 0, 32),
    ("sm_89", 16, 1, 0, 24),
    # one warp takes a slot of each quarter: 65536 / (4 * 32 * 128)
    ("sm_80", 128, 1, 0, 4),
    ("sm_80", 64, 8, 0, 4),
    ("sm_120", 64, 4, 50 << 10, 1),
    ("sm_120", 64, 4, 49 << 10, 2),
]


@pytest.mark.parametrize(("architecture", "registers", "warps", "shared", "blocks"), OCCUPANCY)
def test_blocks_per_sm(architecture, registers, warps, shared, blocks):
    cubin = Cubin(b"", "", "k", shared, warps, 0, 1, 0, 0)
    found = blocks_per_sm(cubin, usage(registers, architecture), targets.ARCHITECTURES[architecture])
    assert found == blocks


def test_tensor_memory_limits_blocks():
    cubin = Cubin(b"", "", "k", 0, 4, 0, 1, 0, 256)
    assert blocks_per_sm(cubin, usage(32, "sm_100"), targets.ARCHITECTURES["sm_100"]) == 2


@pytest.mark.parametrize("image", [b"", b"\x7fELF\x02" + bytes(60), b"\x7fELF\x01" + b"\xbe" * 60, b"cubin" * 20])
def test_what_is_no_cubin_is_not_examined(image):
    with pytest.raises(ValueError, match="no cubin"):
        examine(image)


def test_only_claims_about_arguments_are_taken():
    with pytest.raises(ValueError, match="double: no plain constant or no argument: weight"):
        job(DOUBLE, {}, DOUBLE.default({}, H800), "bf16", H800, {"x": True, "weight": True})
    with pytest.raises(ValueError, match="double: no plain constant or no argument: BLOCK"):
        job(DOUBLE, {}, {**DOUBLE.default({}, H800), "BLOCK": "large"}, "bf16", H800)
