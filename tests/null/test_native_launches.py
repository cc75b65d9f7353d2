"""What the GPU executor knows before there is a GPU: launches, memory, the parts of a call, rows of the cache."""

from __future__ import annotations

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from dsv2_compile.backends.cuda import host
from dsv2_compile.plan.plan import Pointer
from dsv2_compile.runtime.native import rows
from dsv2_compile.runtime.native.calls import prepare
from dsv2_compile.runtime.native.launches import bucket, parameters, replayable, resolve, scratch_bytes, widths
from dsv2_compile.runtime.native.memory import cut, needs, weight_layout
from tests import native_plans
from tests.native_executor import SLOTS, call, placements


@pytest.mark.parametrize("limit, sizes", [(6, [1, 2, 4, 4, 6, 6]), (8, [1, 2, 4, 4, 8, 8, 8, 8]), (1, [1])])
def test_decode_steps_are_padded_to_powers_of_two(limit, sizes):
    assert [bucket(rows, limit) for rows in range(1, limit + 1)] == sizes


def test_only_steps_that_are_the_same_whatever_the_lengths_are_replayed():
    programs = native_plans.toy().programs
    assert {n for n, p in programs.items() if replayable(p)} == {"decode-2", "decode-6"}


def test_arguments_have_their_types():
    entry = native_plans.toy().kernels[1]
    made = parameters(entry, (1 << 40, 2, 3, 0, 5, 7, 1 << 41, 0))
    assert made == (1 << 40, 2, 3, 0, 5, 7, 1 << 41, 0)
    assert [type(v) for v in made] == [int] * 4 + [np.int32] * 2 + [int] * 2
    assert widths(entry) == (8, 8, 8, 8, 4, 4, 8, 8)
    with pytest.raises((OverflowError, ValueError)):
        parameters(entry, (1, 2, 3, 0, 1 << 31, 7, 0, 0))


def test_a_compiled_kernel_takes_what_a_launch_gives():
    from dsv2_compile.kernels.gpu import all as _all  # noqa: F401  registers the kernels
    from dsv2_compile.kernels.gpu.aot import build, job
    from dsv2_compile.kernels.gpu.kernel import KERNELS
    from dsv2_compile.targets import target

    kernel, gpu = KERNELS["rms_norm"], target("h800")
    dims = {"N": 64, "X_STRIDE": 64, "EPS": 1e-6, "RESIDUAL": True, "INDEXED": False}
    cubin = build(job(kernel, dims, kernel.default(dims, gpu), "bf16", gpu))
    declared = re.search(r"\.entry\s+\w+\s*\((.*?)\)", cubin.ptx, re.DOTALL).group(1)
    bits = [int(n) for n in re.findall(r"\.param\s+\.[a-z]+(\d+)", declared)]
    kinds = tuple("*bf16" if kind == "*T" else kind for kind in kernel.args.values())
    entry = replace(native_plans.toy().kernels[0], args=kinds, aligned=(False,) * len(kinds))
    assert tuple(b // 8 for b in bits) == widths(entry)


def test_launches_are_those_of_the_host(monkeypatch):
    """Grids, scalars, and pointers by their distance from their buffer, of all programs of a lowered plan."""
    plan, _ = native_plans.tiny("bf16")
    weights = native_plans.random_weights(plan, 1)
    seen = []

    def note(fn, args, constants, grid, memory):
        starts = np.array(memory._starts)
        values = [v - int(starts[starts <= v].max()) if kind.startswith("*") and v else v for kind, v in args.values()]
        seen.append((tuple(grid), values))

    monkeypatch.setattr(host, "run", note)
    executor = host.HostExecutor(plan, weights, 512)
    calls = {"prefill": ([0, 10], [9, 2]), "extend": ([70, 0], [1, 20]), "decode": ([64, 0, 5], [1, 1, 1])}
    for name, (past, counts) in calls.items():
        seen.clear()
        symbols, inputs = call(plan, name, past, counts, page=64)
        executor.run(name, symbols, inputs)
        program = plan.programs[name]
        prepared = prepare(name, program, 512, symbols, inputs, replayed=False)
        blocks = {b: (i + 1) << 40 for i, b in enumerate(("weights", "cache", "arena", "inputs", "outputs"))}
        offsets = {n: i << 24 for i, (n, b) in enumerate(program.buffers.items()) if b.place == "weight"}
        where = prepared.addresses(blocks, offsets)
        others = [where[n] for n, b in program.buffers.items() if b.place != "arena"]
        assert len(set(others)) == len(others)
        for n, b in program.buffers.items():
            if b.place == "arena":
                theirs = executor._place(n, b, prepared.sizes, inputs).ctypes.data - executor._arena.ctypes.data
                assert where[n] - blocks["arena"] == theirs
        ours = []
        for launch, made in zip(program.launches, resolve(plan, program, prepared.sizes, where, (0, 0)), strict=True):
            values = [
                v - where[a.buffer] if isinstance(a, Pointer) else v
                for a, v in zip(launch.args, made.args[:-2], strict=True)
            ]
            assert made.args[-2:] == (0, 0) and made.threads == 32 * plan.kernels[made.kernel].warps
            ours.append((made.grid, values))
        assert len(ours) > 20
        assert ours == seen


def test_a_claim_that_does_not_hold_is_refused():
    plan = native_plans.toy()
    program = plan.programs["prefill"]
    sizes = {"rows": 4, "batch": 2, "context": 4, "slots": SLOTS}
    where = {n: 4096 for n in program.buffers}
    assert len(list(resolve(plan, program, sizes, where, (0, 384 * 2)))) == 4
    with pytest.raises(ValueError, match="no multiple of 16"):
        list(resolve(plan, program, sizes, {**where, "embed": 4104}, (0, 384 * 2)))
    with pytest.raises(ValueError, match="more scratch"):
        list(resolve(plan, program, sizes, where, (0, 384 * 2 - 1)))


def test_memory_is_counted_for_the_largest_of_every_program():
    plan = native_plans.toy()
    weights = {n: replace(p, file=f) for f in "ab" for n, p in placements().items()}
    found = needs(plan, weight_layout(plan, weights), SLOTS, scratch_bytes(plan, SLOTS))
    assert found.cache == 2 * SLOTS * 8 * 2 and found.arena == 512
    assert found.weights == 512 + 256
    assert found.inputs == 5 * 256 and found.outputs == 512 + 256  # inputs under 256; 7 rows of 10 logits, and tokens
    assert found.scratch == 4 * 2 * 384  # 16 rows in blocks of 4, by 2
    assert found.total == sum(vars(found).values()) and "cache 0.00" in str(found)


def test_outputs_are_cut_to_their_first_rows():
    logits = native_plans.toy().programs["decode-6"].buffers["logits"]
    assert cut(logits, {"batch": 3}, {"batch": 4}) == (3, 10)
    with pytest.raises(ValueError, match="cannot be cut"):
        cut(logits, {"batch": 5}, {"batch": 4})
    sideways = replace(logits, shape=logits.shape[::-1])
    with pytest.raises(ValueError, match="cannot be cut"):
        cut(sideways, {"batch": 3}, {"batch": 4})


def test_rows_are_rounded_as_ml_dtypes_rounds_them():
    rng = np.random.default_rng()
    bits = np.concatenate((rng.integers(0, 1 << 32, 20_000), np.arange(0x3F80_0000, 0x3F84_0000, 0x1000)))
    bits = np.concatenate((bits, [0, 1 << 31, 1, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000, 0x7F80_0001, 0xFFFF_FFFF]))
    values = bits.astype(np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        ours, theirs = rows.to_bf16(values), values.astype(ml_dtypes.bfloat16)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(ours[number], theirs.view(np.uint16)[number])
    assert np.isnan(rows.from_bf16(ours)[~number]).all()
    np.testing.assert_array_equal(rows.from_bf16(ours)[number], theirs.astype(np.float32)[number])


@pytest.mark.parametrize(
    "at, found", [([], []), ([5], [(0, 5, 1)]), ([4, 5, 6, 2, 3, 9, 8], [(0, 4, 3), (3, 2, 2), (5, 9, 1), (6, 8, 1)])]
)
def test_neighbouring_rows_are_copied_at_once(at, found):
    assert list(rows.runs(np.array(at, np.int64))) == found
