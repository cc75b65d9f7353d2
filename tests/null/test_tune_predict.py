"""The model of a kernel's time against what is known of such kernels. Nothing here is measured: kernels are compiled,
their times are predicted."""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace

import pytest

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.predict import LAUNCH, bound, estimate, predict
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import compile_all, request
from dsv2_compile.backends.cuda.instruction_mix import instructions, main_loop, mix
from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call
from dsv2_compile.kernels.gpu.shapes import shapes
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.targets import GPUS, target

H800, H200, H20, A100 = (target(n) for n in ("h800", "h200", "h20", "a100"))
OVERLAPPING = ("dram", "l2", "matrix", "issue", "shared", "latency")


def call_of(kernel, dims, dtype="bf16", **sizes):
    return Call.of(KERNELS[kernel], dims, sizes, dtype)


def linear(rows, n, k, dtype="bf16"):
    dims = {"N": n, "K": k, "X_STRIDE": k, "OUT_STRIDE": n, "INDEXED": False}
    return call_of("linear", dims, dtype, rows=rows)


def moe(rows):
    return call_of("moe_up", {"EXPERTS": 64, "TOP_K": 6, "N": 1408, "K": 2048}, rows=rows)


def tile(m, n, k, warps=4, stages=4, split=1, group=8):
    return {
        "BLOCK_M": m,
        "BLOCK_N": n,
        "BLOCK_K": k,
        "SPLIT_K": split,
        "GROUP_M": group,
        "num_warps": warps,
        "num_stages": stages,
    }


def expert_tile(m, n, k, warps=4, stages=3):
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}


NARROW, LARGE, SKINNY, WIDE = (
    linear(1, 2048, 5120),
    linear(2048, 12288, 5120),
    linear(32, 512, 16384),
    linear(32, 16384, 4096),
)
NORM = call_of("rms_norm", {"N": 5120, "X_STRIDE": 5120, "EPS": 1e-6, "RESIDUAL": True, "INDEXED": False}, rows=1)

POINTS = {
    "one row": (NARROW, tile(1, 4, 1024, stages=1)),
    "one row, few blocks": (NARROW, tile(1, 64, 64, stages=1)),
    "padded": (NARROW, tile(16, 32, 128)),
    "large": (LARGE, tile(128, 128, 64, 8, 3)),
    "large, one stage more": (LARGE, tile(128, 128, 64, 8, 4)),
    "larger": (LARGE, tile(128, 256, 64, 8, 4)),
    "small": (LARGE, tile(16, 64, 64)),
    "skinny": (SKINNY, tile(32, 64, 128)),
    "skinny, split": (SKINNY, tile(32, 64, 128, split=16)),
    "wide": (WIDE, tile(32, 64, 128)),
    "wide, split": (WIDE, tile(32, 64, 128, split=8)),
    "experts": (moe(32), expert_tile(16, 64, 128)),
    "experts, tall": (moe(32), expert_tile(64, 64, 128)),
    "norm": (NORM, {"num_warps": 8, "num_stages": 1}),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """`POINTS` compiled for an h800."""
    asked = {what: request(KERNELS[c.kernel], dict(c.dims), config, "bf16") for what, (c, config) in POINTS.items()}
    results = compile_all(list(asked.values()), H800, cache=BuildCache(tmp_path_factory.mktemp("predict")))
    assert [r.reason for r in results if not r.ok] == []
    return dict(zip(asked, results, strict=True))


@pytest.fixture(scope="module")
def predicted(built):
    return {what: predict(*POINTS[what], built[what], H800) for what in POINTS}


def test_a_prediction_is_made_of_its_parts(predicted, built):
    for what, p in predicted.items():
        assert p.microseconds >= p.bound > 0
        assert all(isinstance(v, float) and math.isfinite(v) and v >= 0 for v in vars(p).values()), what
        longest = max(getattr(p, name) for name in OVERLAPPING)
        assert longest == getattr(p, p.limit)
        rest = p.launch + p.start + p.follower
        assert longest <= p.microseconds - rest <= len(OVERLAPPING) * longest, what
        assert p == predict(*POINTS[what], built[what], H800)
    assert {f.name for f in fields(p)} >= {*OVERLAPPING, "microseconds", "tail", "waves", "in_flight"}


def test_one_row_takes_no_padding_and_many_blocks(predicted):
    assert predicted["one row"].microseconds < predicted["padded"].microseconds
    few = predicted["one row, few blocks"]
    assert few.blocks < H800.sms < predicted["one row"].blocks
    assert few.limit == "latency" and few.microseconds > 1.5 * predicted["one row"].microseconds
    assert few.in_flight < predicted["one row"].in_flight


def test_many_rows_want_large_tiles_on_matrix_units(predicted, built):
    assert built["large"].report.matrix == built["larger"].report.matrix == "HGMMA"
    large, larger, small = (predicted[w] for w in ("large", "larger", "small"))
    assert small.microseconds > 2.5 * max(large.microseconds, larger.microseconds)
    for p in (large, larger):
        assert 0.5 < p.bound / p.microseconds < 0.85


def test_matrix_instructions_of_a_warp_are_slower_on_hopper(built):
    """The same code, said to multiply with the instructions of one warp."""
    point, result = POINTS["larger"], built["larger"]
    warp = replace(result, report=replace(result.report, matrix="HMMA"))
    assert predict(*point, warp, H800).matrix > 1.4 * predict(*point, result, H800).matrix


def test_a_stage_that_costs_a_block_its_place_is_too_many(predicted):
    three, four = predicted["large"], predicted["large, one stage more"]
    assert (three.blocks_per_sm, four.blocks_per_sm) == (2, 1)
    assert three.microseconds < four.microseconds


def test_splitting_k_helps_where_blocks_are_few(predicted):
    assert predicted["skinny"].blocks < H800.sms
    assert predicted["skinny, split"].microseconds < predicted["skinny"].microseconds
    assert predicted["skinny, split"].follower > LAUNCH
    assert predicted["wide"].blocks > H800.sms
    assert predicted["wide, split"].microseconds > predicted["wide"].microseconds


def test_few_tokens_an_expert_want_low_tiles(predicted):
    assert predicted["experts"].microseconds < predicted["experts, tall"].microseconds
    for rows in (1, 8, 32):
        low, tall = (estimate(moe(rows), expert_tile(m, 64, 128), H800) for m in (16, 64))
        assert low < tall
    low, tall = (estimate(moe(8192), expert_tile(m, 128, 64, 8), H800) for m in (16, 128))
    assert tall < low / 2


def test_spills_cost(built):
    point, result = POINTS["large"], built["large"]
    mix_with = tuple(sorted({**dict(result.usage.loop), "local": 64}.items()))
    spilling = replace(result, usage=replace(result.usage, loop=mix_with))
    assert predict(*point, spilling, H800).microseconds > 1.2 * predict(*point, result, H800).microseconds


def test_small_kernels_are_launches_and_latency(predicted):
    norm = predicted["norm"]
    assert norm.limit == "latency"
    assert 20 * norm.bound < norm.microseconds
    assert 1.5 < norm.microseconds < 5


@pytest.mark.parametrize("what", ["one row", "padded", "larger", "experts", "norm"])
def test_time_grows_with_rows(what, built):
    call, config = POINTS[what]
    times = [
        predict(replace(call, sizes=(("rows", rows),)), config, built[what], H800).microseconds
        for rows in (1, 16, 256, 4096)
    ]
    assert times == sorted(times) and times[-1] > 2 * times[0]


def test_fewer_flop_are_the_limit_earlier(built):
    """On two GPUs of one architecture, the rows from which on matrix units are slower than memory."""

    def turns(gpu):
        for rows in (1, 16, 32, 64, 128, 256, 512, 1024, 2048):
            p = predict(linear(rows, 12288, 5120), POINTS["large"][1], built["large"], gpu)
            if p.matrix > p.dram:
                return rows
        return math.inf

    assert turns(H20) < turns(H200) < math.inf
    call = linear(4096, 12288, 5120)
    slow, fast = (predict(call, tile(128, 256, 64, 8, 4), built["larger"], gpu) for gpu in (H20, H200))
    assert slow.microseconds > 3 * fast.microseconds


def test_more_memory_bandwidth_helps_what_memory_limits(built):
    slow, fast = (predict(linear(1, 20480, 5120), POINTS["one row"][1], built["one row"], g) for g in (H800, H200))
    assert slow.limit == "dram"
    assert 1.2 < slow.microseconds / fast.microseconds < 4.8 / 3.35


def test_estimates_are_near_what_is_predicted_of_the_code(predicted):
    guesses = {what: estimate(*POINTS[what], H800) for what in POINTS}
    for what, guess in guesses.items():
        assert 0.7 < guess / predicted[what].microseconds < 1.4, what


def calls(model):
    """Of every shape, at several numbers of rows."""
    for rows in (1, 4, 32, 64, 256, 2048, 4096):
        for shape in shapes(PRESETS[model], rows):
            batch = min(rows, 32)
            yield shape, call_of(shape.kernel, shape.dims, rows=rows, batch=batch, context=max(rows, 1024 * batch))


@pytest.mark.parametrize("model", PRESETS)
def test_no_default_is_refused(model):
    for shape, call in calls(model):
        for gpu in GPUS.values():
            found = estimate(call, KERNELS[shape.kernel].default(shape.dims, gpu), gpu)
            assert found is not None, (shape, gpu.name)
            assert found >= bound(call, gpu), (shape, gpu.name)


@pytest.mark.parametrize("model", PRESETS)
def test_work_is_that_of_the_grid_and_no_less_than_the_cost(model):
    for shape, call in calls(model):
        kernel, sizes = KERNELS[shape.kernel], dict(call.sizes)
        config = kernel.default(shape.dims, H800)
        work, cost = kernel.work(shape.dims, config, sizes), kernel.cost(shape.dims, sizes)
        grid = math.prod(evaluate(size, {}) for size in kernel.grid(shape.dims, config, sizes))
        assert work.blocks + work.idle == grid, shape
        assert work.blocks * (work.loaded + work.stored) > 0.97 * cost.bytes, shape
        assert not work.matrix or work.blocks * work.flops > 0.97 * cost.flops, shape


def test_fp32_moves_and_computes_more():
    config = tile(16, 64, 64, stages=2)
    assert estimate(linear(16, 8192, 4096, "fp32"), config, A100) > 1.5 * estimate(linear(16, 8192, 4096), config, A100)


IMPOSSIBLE = {
    "accumulators": (LARGE, tile(128, 256, 64, 4, 3), "spills"),
    "shared memory": (LARGE, tile(128, 256, 128, 8, 3), "shared memory"),
}


@pytest.mark.parametrize("why", IMPOSSIBLE)
def test_what_is_refused_unseen_is_no_use_compiled(why, tmp_path):
    call, config, said = IMPOSSIBLE[why]
    assert estimate(call, config, H800) is None
    asked = request(KERNELS[call.kernel], dict(call.dims), config, "bf16")
    (result,) = compile_all([asked], H800, workers=1, cache=BuildCache(tmp_path))
    assert said in result.reason or (said == "spills" and result.report.spills)


def test_stages_of_a_loop_without_matrix_products_change_nothing(built, tmp_path):
    call, config = POINTS["one row"]
    more = {**config, "num_stages": 4}
    assert estimate(call, more, H800) is None
    asked = request(KERNELS[call.kernel], dict(call.dims), more, "bf16")
    (result,) = compile_all([asked], H800, workers=1, cache=BuildCache(tmp_path))
    assert result.usage == built["one row"].usage


def test_an_estimate_takes_microseconds():
    configs = [tile(m, n, 64, w, s) for m in (16, 64, 128) for n in (32, 64, 128) for w in (4, 8) for s in (2, 3, 4)]
    began = time.process_time()
    for config in configs * 10:
        estimate(LARGE, config, H800)
    assert (time.process_time() - began) / (10 * len(configs)) < 200e-6


def test_the_main_loop_is_what_the_tile_says(built):
    loop = dict(built["larger"].usage.loop)
    assert loop["flops"] * 8 == 2 * 128 * 256 * 64
    assert loop["async_bytes"] * 8 == 2 * 64 * (128 + 256)
    assert dict(built["one row"].usage.loop)["global_bytes"] * 4 == 2 * 1024 * (1 + 4)
    assert built["norm"].usage.loop == () and dict(built["norm"].usage.code)["instructions"] > 50


SASS = """
.text.f:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_1:
        /*0020*/                   LDSM.16.M88.4 R8, [R3] ;
        /*0030*/                   HMMA.16816.F32.BF16 R12, R8, R4, R12 ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/                   STG.E [R2.64], R12 ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
"""


def test_the_innermost_loop_is_found():
    code, labels = instructions(SASS)
    assert [i.opcode for i in main_loop(code, labels)] == ["LDSM", "HMMA", "BRA"]
    found = dict(mix(main_loop(code, labels)))
    assert (found["matrix"], found["flops"], found["shared_bytes"]) == (1, 2 * 16 * 8 * 16, 512)
    assert dict(mix(code))["global_bytes"] == 32 * (16 + 4)
