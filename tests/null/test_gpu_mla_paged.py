"""Absorbed MLA over pages: schedule, decode and combine together, every form of decode, properties of the split."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from math import prod

import pytest
import torch
import triton

from dsv2_compile.backends.cuda.compile import compile_all, request
from dsv2_compile.kernels.gpu.cases import CASES
from dsv2_compile.kernels.gpu.cases.mla_paged import SMALL, decode_case, extend_case, paged_cache
from dsv2_compile.kernels.gpu.check import POISON, check, normal, on_host
from dsv2_compile.kernels.gpu.mla_paged import MLA_DECODE, MLA_EXTEND, parts_for
from dsv2_compile.kernels.gpu.mla_split import FIELDS, MLA_COMBINE, MLA_SCHEDULE, partial_rows, schedule
from dsv2_compile.kernels.ops.attention import mla_absorbed
from dsv2_compile.targets import GPUS, target

H800 = target("h800")


def step(positions: list[int], parts: int, dims: dict, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A decode step through the three kernels in fp32, and `mla_absorbed` in fp64."""
    g, rows = torch.Generator().manual_seed(seed), len(positions)
    dims = {**dims, "PARTS": parts, "OVERHEAD": 1, "MAX_PAGES": max(positions) // dims["PAGE"] + 2}
    heads, latent, rope = dims["HEADS"], dims["LATENT"], dims["ROPE"]
    cache, table = paged_cache(g, dims, [p + 1 for p in positions])
    q = normal(g, rows, heads, latent + rope)
    slots = partial_rows(rows, parts)
    tensors = {
        "q": q.float(),
        "cache": cache.float(),
        "page_table": table,
        "positions": torch.tensor(positions, dtype=torch.int32),
        "sequence": torch.arange(rows, dtype=torch.int32),
        "parts": torch.full((parts + 1, FIELDS), POISON, dtype=torch.int32),
        "partial": torch.full((slots, heads, latent), float("nan")),
        "lse": torch.full((slots, heads), float("nan")),
        "out": torch.full((rows, heads, latent), float("nan")),
    }
    for kernel in (MLA_SCHEDULE, MLA_DECODE, MLA_COMBINE):
        names = ("PAGE", "PARTS", "OVERHEAD") if kernel is MLA_SCHEDULE else tuple(dims)
        own = {n: dims[n] for n in names}
        on_host(kernel, own, kernel.default(own, H800), {"rows": rows}, "fp32", tensors)
    expected = torch.zeros(rows, heads, latent, dtype=torch.float64)
    for row, position in enumerate(positions):
        if position >= 0:
            at = torch.arange(position + 1)
            keys = tensors["cache"].double()[table[row].long()[at // dims["PAGE"]] * dims["PAGE"] + at % dims["PAGE"]]
            past = torch.tensor([position])
            query = tensors["q"].double()[row][None, None]
            expected[row] = mla_absorbed(query, keys[None, :-1], keys[None, -1:], past, dims["SCALE"], latent)[0, 0]
    return tensors["out"].double(), expected


@pytest.mark.parametrize(
    ("positions", "parts"),
    [([300], 9), ([0, 63, 64, 700, -1, 5], 4), ([-1, 65], 1), ([30] * 9, 3), ([400, 90, 800], 132)],
)
def test_schedule_decode_and_combine_are_absorbed_attention(positions, parts):
    dims = {"HEADS": 3, "LATENT": 48, "ROPE": 8, "PAGE": 64, "SCALE": 0.2}
    out, expected = step(positions, parts, dims, seed=parts)
    assert (out - expected).norm() <= 4e-6 * expected.norm()


FORMS = [
    {"SWAP": 1},
    {"SWAP": 1, "CHUNKS": 2, "BLOCK_N": 64},
    {"CHUNKS": 4},
    {"BLOCK_N": 128},
    {"SWAP": 1, "BLOCK_N": 128, "BLOCK_H": 32},
    {"BLOCK_H": 64, "BLOCK_N": 16},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_of_decode_computes_the_same(form):
    case = decode_case((0, 150, -1, 64), 4, heads=20, **SMALL)
    for error in check(case, "bf16", {**MLA_DECODE.default(case.dims, H800), **form}, on_host):
        assert error.passed, error


@pytest.mark.parametrize("tile", [(1, 64), (64, 1), (2, 2), (4, 16)], ids=str)
def test_every_tile_of_extend_computes_the_same(tile):
    case = extend_case((3, 1, 6), (100, 0, 62), heads=5)
    config = {**MLA_EXTEND.default(case.dims, H800), "QUERY_TILE": tile[0], "BLOCK_H": tile[1], "BLOCK_N": 128}
    for error in check(case, "bf16", config, on_host):
        assert error.passed, error


@pytest.mark.parametrize("case", [decode_case((0, 150, -1, 64), 4, **SMALL), extend_case((3, 1, 6), (100, 0, 62))])
def test_the_order_of_programs_does_not_matter(case):
    def backwards(kernel, dims, config, sizes, dtype, tensors):
        grid = kernel.grid(dims, config, sizes)
        on_host(kernel, dims, config, sizes, dtype, tensors, list(range(prod(grid)))[::-1])

    for error in check(case, "bf16", case.kernel.default(case.dims, H800), backwards):
        assert error.passed, error


def test_a_wrong_split_is_noticed():
    """Parts of one overhead and positions of another step leave rows unwritten."""
    case = decode_case((150, 300), 4, **SMALL)

    def stale(kernel, dims, config, sizes, dtype, tensors):
        tensors["parts"] = schedule([20, 300], 64, 4, 1)
        on_host(kernel, dims, config, sizes, dtype, tensors)

    assert not all(e.passed for e in check(case, "bf16", case.kernel.default(case.dims, H800), stale))


def test_a_split_covers_all_work_once_in_even_parts_and_few_slots():
    chance = random.Random(0)
    for _ in range(300):
        rows, parts, overhead = chance.randint(1, 12), chance.randint(1, 20), chance.randint(0, 3)
        positions = [chance.choice((-1, 0, 63, 64, chance.randint(0, 5000))) for _ in range(rows)]
        table = schedule(positions, 64, parts, overhead).tolist()
        blocks = [p // 64 + 1 if p >= 0 else 0 for p in positions]
        work = [(row, block) for row, count in enumerate(blocks) for block in range(count)]
        each = -(-(len(work) + overhead * sum(b > 0 for b in blocks)) // parts)
        done = []
        for (first, begin, *_), (last, end, *_) in pairwise(table):
            part = [item for item in work if (first, begin) <= item < (last, end)]
            assert len(part) <= each
            done += part
        assert done == work
        pieces = [entry[0] for entry in table if entry[1]]
        assert table[-1][4] == len(pieces) + len(set(pieces)) <= partial_rows(rows, parts)


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("heads", [1, 16, 128])
def test_parts_fill_the_gpu_and_no_more(name, heads):
    gpu = target(name)
    dims = {"HEADS": heads, "LATENT": 512, "ROPE": 64, "PAGE": 64, "MAX_PAGES": 64, "SCALE": 0.1}
    config = MLA_DECODE.default(dims, gpu)
    programs = parts_for(dims, gpu) * -(-heads // config["BLOCK_H"])
    assert gpu.sms / 2 < programs <= 4 * gpu.sms


@pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="only Triton 3.6 took rows for aligned")
def test_rows_of_an_odd_width_are_read_one_value_at_a_time():
    """An H200 faulted where they were not."""
    case, gpu = CASES["mla_extend"][8], target("h200")
    assert (int(case.dims["LATENT"]) + int(case.dims["ROPE"])) % 2 and case.dims["PAGE"] < 32
    (built,) = compile_all([request(case.kernel, case.dims, case.kernel.default(case.dims, gpu), "bf16")], gpu)
    wide = re.findall(r"cp\.async\.ca[.\w]*|ld\.global[.\w]*\.v\d", built.cubin.ptx)
    assert built.ok and not wide
