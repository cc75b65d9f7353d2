"""The GPU executor without a GPU: what can be computed ahead, the order of its calls, its errors, and its results
where the host interprets the kernels. That a GPU does the same is not shown here."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from dsv2_compile.backends.cuda import host
from dsv2_compile.errors import Dsv2Error, IncompatibleError, IntegrityError, NumericError, ResourceError, UsageError
from dsv2_compile.plan.pack import pack
from dsv2_compile.plan.plan import Pointer
from dsv2_compile.runtime.native import cuda, cuda_core, rows
from dsv2_compile.runtime.native.calls import prepare
from dsv2_compile.runtime.native.driver import OUT_OF_MEMORY
from dsv2_compile.runtime.native.launches import bucket, parameters, replayable, resolve, scratch_bytes, widths
from dsv2_compile.runtime.native.memory import cut, needs, weight_layout
from dsv2_compile.runtime.native.pages import PagePool
from dsv2_compile.runtime.native.store import PagedStore
from dsv2_compile.runtime.sampling import Draw, Sampling, sample
from tests import native_plans
from tests.native_driver import InterpretingDriver, RecordingDriver

SLOTS = 64
GREEDY = Draw(Sampling(), 0.0)


def opened(monkeypatch, plan, root, driver, **options):
    """An executor of ``plan`` on ``driver``, and the weights that lie in ``root``."""
    weights = native_plans.random_weights(plan, 1)
    placed = native_plans.write_engine(root, plan, weights)
    monkeypatch.setattr(cuda, "open_driver", lambda device: driver)
    monkeypatch.setattr(cuda, "STAGING_BYTES", 4096)
    return cuda.CudaExecutor(plan, root, placed, **{"slots": SLOTS, **options}), weights


@pytest.fixture
def driver():
    return RecordingDriver()


@pytest.fixture
def toy(monkeypatch, tmp_path, driver):
    """(executor, plan) of the plan written by hand."""
    plan = native_plans.toy()
    executor, _ = opened(monkeypatch, plan, tmp_path / "engine", driver)
    with executor:
        yield executor, plan


def call(plan, name, past, counts, page=16):
    """Symbols and inputs of sequences in pages of their own, in reverse."""
    tokens = [np.arange(1, n + 1) for n in counts]
    need = [-(-(p + n) // page) for p, n in zip(past, counts, strict=True)]
    tables, last = np.zeros((len(counts), plan.pages), np.int32), sum(need)
    for table, n in zip(tables, need, strict=True):
        table[:n] = np.arange(last - 1, last - n - 1, -1)
        last -= n
    return pack(plan.programs[name], page, tokens, past, tables)


# what needs no driver


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
    from dsv2_compile.kernels.gpu.aot import compile_kernel
    from dsv2_compile.kernels.gpu.kernel import KERNELS
    from dsv2_compile.targets import target

    kernel, gpu = KERNELS["rms_norm"], target("h800")
    dims = {"N": 64, "X_STRIDE": 64, "EPS": 1e-6, "RESIDUAL": True, "INDEXED": False}
    cubin = compile_kernel(kernel, dims, kernel.default(dims, gpu), "bf16", gpu)
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
    weights = {n: replace(p, file=f) for f in "ab" for n, p in _placements(plan).items()}
    found = needs(plan, weight_layout(plan, weights), SLOTS, scratch_bytes(plan, SLOTS))
    assert found.cache == 2 * SLOTS * 8 * 2 and found.arena == 512
    assert found.weights == 512 + 256
    assert found.inputs == 5 * 256 and found.outputs == 512 + 256  # inputs under 256; 7 rows of 10 logits, and tokens
    assert found.scratch == 4 * 2 * 384  # 16 rows in blocks of 4, by 2
    assert found.total == sum(vars(found).values()) and "cache 0.00" in str(found)


def _placements(plan):
    from dsv2_compile.engine.placement import Placement

    shapes = {"embed": (64, 30), "head": (544, 10)}
    return {n: Placement("w", at, rows * 16, "bfloat16", (rows, 8)) for n, (at, rows) in shapes.items()}


def test_outputs_are_cut_to_their_first_rows():
    logits = native_plans.toy().programs["decode-6"].buffers["logits"]
    assert cut(logits, {"batch": 3}, {"batch": 4}) == (3, 10)
    with pytest.raises(ValueError, match="cannot be cut"):
        cut(logits, {"batch": 5}, {"batch": 4})
    sideways = replace(logits, shape=logits.shape[::-1])
    with pytest.raises(ValueError, match="cannot be cut"):
        cut(sideways, {"batch": 3}, {"batch": 4})


# cache rows


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


def test_cache_rows_come_back(toy, driver):
    executor, _ = toy
    rng = np.random.default_rng()
    values = rng.standard_normal((2, 7, 8)).astype(np.float32)
    values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    at = np.array([40, 41, 42, 3, 0, 63, 62])
    executor.write_rows(at, values)
    copies = driver.count("copy_in")
    np.testing.assert_array_equal(executor.read_rows(at), values)
    np.testing.assert_array_equal(executor.read_rows(at[::-1]), values[:, ::-1])
    assert np.isnan(executor.read_rows(np.array([1, 43]))).all()
    assert executor.read_rows(np.array([], np.int64)).shape == (2, 0, 8)
    executor.write_rows(at[:3], values[:, :3])
    assert driver.count("copy_in") == copies + 2  # a layer each
    for wrong, of in ((np.array([64]), values[:, :1]), (np.array([-1]), values[:, :1]), (at, values[:1])):
        with pytest.raises(ValueError):
            executor.write_rows(wrong, of)
    assert driver.count("copy_in") == copies + 2


# opening


def test_weights_lie_where_the_layout_says(monkeypatch, tmp_path, driver):
    plan = native_plans.toy()
    executor, weights = opened(monkeypatch, plan, tmp_path, driver)
    base = next(a for a, b in driver.blocks.items() if len(b) == executor.needs.weights)
    for name, offset in executor._weights.offsets.items():
        assert offset % 256 == 0
        assert driver.at(base + offset, weights[name].nbytes).tobytes() == weights[name].tobytes(), name
    executor.close()


@pytest.mark.parametrize("staging", [1, 7, 64, 4096])
def test_any_staging_will_do(tmp_path, driver, staging):
    from dsv2_compile.runtime.native.weights import upload

    plan = native_plans.toy()
    weights = native_plans.random_weights(plan, 2)
    layout = weight_layout(plan, native_plans.write_engine(tmp_path, plan, weights))
    base = driver.alloc(layout.nbytes)
    upload(driver, tmp_path, layout.reads, base, driver.pinned(staging))
    for name, offset in layout.offsets.items():
        assert driver.at(base + offset, weights[name].nbytes).tobytes() == weights[name].tobytes()


def test_two_names_of_one_placement_share_their_bytes():
    plan = native_plans.toy()
    placed = _placements(plan)
    buffers = dict(plan.programs["prefill"].buffers) | {"tied": plan.programs["prefill"].buffers["embed"]}
    plan = replace(plan, programs={"prefill": replace(plan.programs["prefill"], buffers=buffers)})
    layout = weight_layout(plan, placed | {"tied": placed["embed"]})
    assert layout.offsets["tied"] == layout.offsets["embed"] != layout.offsets["head"]
    assert len(layout.reads) == 2 and layout.nbytes == 512 + 256


def test_weights_that_are_not_the_plans_are_refused():
    plan = native_plans.toy()
    placed = _placements(plan)
    wrong = {"embed": replace(placed["embed"], dtype="float16")}
    with pytest.raises(IntegrityError, match="lacks 2 of the 2 weights") as e:
        weight_layout(plan, wrong)
    assert e.value.problems == ("embed: float16 of 480 bytes, the plan has bf16 of 480", "head: missing")


@pytest.mark.parametrize("harm", ["short", "gone"])
def test_weight_files_that_changed_are_refused(monkeypatch, tmp_path, driver, harm):
    plan = native_plans.toy()
    placed = native_plans.write_engine(tmp_path, plan, native_plans.random_weights(plan, 1))
    monkeypatch.setattr(cuda, "open_driver", lambda device: driver)
    last = tmp_path / placed["embed"].file
    if harm == "short":
        last.write_bytes(last.read_bytes()[:-1])
    else:
        last.unlink()
    with pytest.raises(IntegrityError, match="ends before" if harm == "short" else "No such file"):
        cuda.CudaExecutor(plan, tmp_path, placed, SLOTS)
    assert driver.closed and not driver.blocks


def test_kernels_are_loaded_and_memory_is_held_until_closed(toy, driver):
    executor, _ = toy
    assert [c for c in driver.calls if c[0] == "load"] == [
        ("load", b"0", "k0", 0),
        ("load", b"1", "k1", 70_000),
        ("load", b"2", "k2", 40_000),
    ]
    assert [c[1] for c in driver.calls if c[0] == "alloc"] == list(vars(executor.needs).values())
    executor.run("decode-2", *call(executor.plan, "decode-2", [3], [1]))
    executor.close()
    executor.close()
    assert driver.closed and not driver.blocks and driver.count("discard") == 1
    for work in (
        lambda: executor.run("decode-2", *call(executor.plan, "decode-2", [3], [1])),
        lambda: executor.read_rows(np.array([1])),
        lambda: executor.write_rows(np.array([1]), np.zeros((2, 1, 8), np.float32)),
    ):
        with pytest.raises(UsageError, match="closed"):
            work()


@pytest.mark.parametrize(
    "driver, error, cause, remedy",
    [
        (RecordingDriver("sm_89"), IncompatibleError, "for sm_90 (h800), found sm_89", "--gpu l40s or rtx4090"),
        (RecordingDriver("sm_75"), IncompatibleError, "found sm_75", "on a GPU of sm_90"),
        (RecordingDriver(free=4000), ResourceError, "0.00 of 2199.02 GB are free", "shorter sequences"),
        (RecordingDriver(fails={"alloc 3": OUT_OF_MEMORY}), ResourceError, "no memory left to reserve", "free memory"),
        (
            RecordingDriver(fails={"load": "CUDA_ERROR_INVALID_IMAGE"}),
            IncompatibleError,
            "load kernels/0.cubin (it is for CUDA 13.0): CUDA_ERROR_INVALID_IMAGE",
            "Update the NVIDIA driver",
        ),
        (RecordingDriver(fails={"load": OUT_OF_MEMORY}), ResourceError, "load kernels/0.cubin", "free memory"),
        (RecordingDriver(fails={"copy_in": "CUDA_ERROR_UNKNOWN"}), Dsv2Error, "take the weights", "Report"),
    ],
)
def test_a_gpu_that_cannot_run_the_engine(monkeypatch, tmp_path, driver, error, cause, remedy):
    with pytest.raises(Dsv2Error) as e:
        opened(monkeypatch, native_plans.toy(), tmp_path, driver)
    assert type(e.value) is error
    assert cause in e.value.cause and remedy in e.value.remedy
    assert driver.closed and not driver.blocks


def test_cubins_that_are_not_the_plans(monkeypatch, tmp_path, driver):
    plan = native_plans.toy()
    placed = native_plans.write_engine(tmp_path, plan, native_plans.random_weights(plan, 1))
    monkeypatch.setattr(cuda, "open_driver", lambda device: driver)
    driver.parameters["1"] = (8, 8, 8)
    with pytest.raises(IncompatibleError, match="takes parameters of"):
        cuda.CudaExecutor(plan, tmp_path, placed, SLOTS)
    (tmp_path / "kernels/2.cubin").unlink()
    monkeypatch.setattr(cuda, "open_driver", lambda device: RecordingDriver())
    with pytest.raises(IncompatibleError, match=r"no kernels/2\.cubin"):
        cuda.CudaExecutor(plan, tmp_path, placed, SLOTS)
    for name in ("../x.cubin", "/etc/passwd", "kernels/../../x"):
        outside = replace(plan, kernels=(replace(plan.kernels[0], cubin=name), *plan.kernels[1:]))
        with pytest.raises(IntegrityError, match="outside the engine"):
            cuda.CudaExecutor(outside, tmp_path, placed, SLOTS)


class Code(int):
    """A CUresult."""

    name = property(lambda self: {0: "CUDA_SUCCESS", 100: "CUDA_ERROR_NO_DEVICE"}.get(self, "CUDA_ERROR_OTHER"))


def bindings(init=0, version=13000, count=1):
    def start(flags):
        if isinstance(init, Exception):
            raise init
        return (Code(init),)

    return types.SimpleNamespace(
        cuInit=start, cuDriverGetVersion=lambda: (Code(0), version), cuDeviceGetCount=lambda: (Code(0), count)
    )


@pytest.mark.parametrize(
    "cu, device, cause",
    [
        (bindings(RuntimeError("Failed to dlopen libcuda.so.1")), 0, "There is no NVIDIA driver"),
        (bindings(100), 0, "There is no GPU 0: the driver finds 0"),
        (bindings(count=2), 2, "There is no GPU 2: the driver finds 2"),
        (bindings(count=2), -1, "There is no GPU -1"),
        (bindings(version=11080), 0, "driver is for CUDA 11.8, 12.0 is needed"),
        (bindings(803), 0, "does not start: CUDA_ERROR_OTHER"),
    ],
)
def test_a_machine_that_cannot_run_engines(monkeypatch, cu, device, cause):
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.core", types.ModuleType("cuda.core"))
    sys.modules["cuda"].core = sys.modules["cuda.core"]
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=cu))
    with pytest.raises(IncompatibleError) as e:
        cuda_core.open_driver(device)
    assert cause in e.value.cause and e.value.exit_code == 5


@pytest.mark.parametrize("missing", ["cuda", "cuda.core", "cuda.bindings"])
def test_without_its_packages_the_extra_is_named(monkeypatch, missing):
    for name in [n for n in sys.modules if n.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(IncompatibleError, match="cuda-core") as e:
        cuda_core.open_driver(0)
    assert "pip install 'dsv2-compile[cuda]'" in e.value.remedy


def test_importing_it_loads_no_cuda_package_and_no_compiler():
    code = (
        "import sys; import dsv2_compile.runtime, dsv2_compile.runtime.native.cuda\n"
        "loaded = {m.split('.')[0] for m in sys.modules} & {'cuda', 'torch', 'triton', 'ml_dtypes'}\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# running


def test_a_step_is_captured_once_a_bucket(toy, driver):
    executor, plan = toy
    for batch in (2, 1, 2, 3, 4, 5, 6):
        name = plan.smallest("decode", rows=batch, batch=batch)
        before = len(driver.ran)
        found = executor.run(name, *call(plan, name, [3] * batch, [1] * batch))
        size = bucket(batch, plan.programs[name].limits["rows"])
        assert found["logits"].shape == (batch, 10)
        ran = driver.ran[before:]
        assert ran[0][:2] == (0, (size, 1, 1)) and int(ran[0][4][3]) == size
    assert driver.count("capture") == 4  # 2 and 1 of the first program, 4 and 6 of the second
    assert [c[1] for c in driver.calls if c[0] == "replay"] == [0, 2, 3]  # the others were the first of their bucket
    assert len(driver.ran) == 7 * 4 - 1  # each once; a step of one row has an empty grid


def test_padding_writes_and_attends_nothing(toy, driver):
    executor, plan = toy
    symbols, inputs = call(plan, "decode-6", [3, 16, 40], [1] * 3)
    executor.run("decode-6", symbols, inputs)
    first = next(r for r in driver.ran if r[0] == 0)
    tokens = driver.at(first[4][0], 16).view(np.int32)
    np.testing.assert_array_equal(tokens, [*inputs["tokens"], 0])
    positions = next(r for r in driver.ran if r[1] == (3, 1, 1))[4][0]  # of the launch over all rows but one
    np.testing.assert_array_equal(driver.at(positions, 16).view(np.int32), [3, 16, 40, -1])
    slots = next(r for r in driver.ran if r[0] == 1)[4][1]
    np.testing.assert_array_equal(driver.at(slots, 16).view(np.int32), [*inputs["slots"], -1])
    base = next(a for a, b in driver.blocks.items() if len(b) == executor.needs.inputs)
    pages = driver.at(base + 4 * 256, 64).view(np.int32).reshape(4, 4)
    np.testing.assert_array_equal(pages[:3], inputs["page_table"])
    assert not pages[3].any()


def test_launches_have_scratch_shared_memory_and_nulls(toy, driver):
    executor, plan = toy
    symbols, inputs = call(plan, "prefill", [0, 0], [5, 1])
    executor.run("prefill", symbols, inputs)
    assert [r[:4] for r in driver.ran] == [
        (0, (6, 1, 1), 32, 0),
        (1, (2, 2, 1), 128, 70_000),
        (0, (5, 1, 1), 32, 0),
        (2, (2, 1, 1), 256, 40_000),
    ]
    for kernel, *_, args in driver.ran:
        scratch, profile = args[-2:]
        assert profile == 0 and bool(scratch) == (kernel == 1)
        if scratch:
            driver.at(scratch, 2 * 2 * 384)
    assert driver.ran[1][4][3:6] == (0, 6, 7)
    cache = next(a for a, b in driver.blocks.items() if len(b) == executor.needs.cache)
    assert driver.ran[1][4][2] == cache + SLOTS * 16  # its second layer


def test_a_grid_without_blocks_is_not_launched(toy, driver):
    executor, plan = toy
    executor.run("prefill", *call(plan, "prefill", [0], [1]))
    assert [r[0] for r in driver.ran] == [0, 1, 2]


def test_without_graphs_nothing_is_captured_or_padded(monkeypatch, tmp_path, driver):
    plan = native_plans.toy()
    executor, _ = opened(monkeypatch, plan, tmp_path, driver, graphs=False)
    with executor:
        executor.run("decode-6", *call(plan, "decode-6", [3] * 3, [1] * 3))
        assert not driver.count("capture") and driver.ran[0][1] == (3, 1, 1)


def test_a_step_that_depends_on_the_lengths_is_launched_anew(toy, driver):
    executor, plan = toy
    executor.run("decode-deep", *call(plan, "decode-deep", [3, 20, 40], [1] * 3))
    assert not driver.count("capture") and driver.ran[-1][1] == (-(-66 // 16), 1, 1)


def test_inputs_beyond_the_limits_or_of_other_shapes_are_refused(toy, driver):
    executor, plan = toy
    symbols, inputs = call(plan, "decode-2", [3, 5], [1, 1])
    narrow = {**inputs, "page_table": inputs["page_table"][:, :3]}
    for asked, given, why in (
        (*call(plan, "decode-2", [3] * 3, [1] * 3), "limits"),
        ({**symbols, "context": 129}, inputs, "limits"),
        (symbols, narrow, "page_table is"),
        ({**symbols, "rows": 1}, inputs, "tokens is"),
    ):
        with pytest.raises(ValueError, match=why):
            executor.run("decode-2", asked, given)
    with pytest.raises(KeyError):
        executor.run("decode-2", symbols, {n: v for n, v in inputs.items() if n != "slots"})
    assert not driver.ran and not driver.count("capture")


def test_what_no_kernel_writes_is_nan_and_no_store_takes_it(toy, driver):
    executor, plan = toy
    found = executor.run("prefill", *call(plan, "prefill", [0, 0], [5, 1]))
    assert np.isnan(found["logits"]).all()
    assert not np.shares_memory(found["logits"], executor._host)
    store = PagedStore(plan, executor, PagePool(4, 16), 2)
    with pytest.raises(NumericError):
        store.append("prefill", np.ones((1, 3), np.int64), np.array([3]), np.array([0]), np.array([0]))


def test_only_the_outputs_that_are_wanted_are_copied(toy, driver):
    executor, plan = toy
    asked = call(plan, "decode-6", [3] * 3, [1] * 3)
    found = executor.run("decode-6", *asked, ("next_tokens",))
    assert found["next_tokens"].tolist() == [-1] * 3 and list(found) == ["next_tokens"]
    assert [c[2] for c in driver.calls if c[0] == "copy_out"] == [3 * 4]
    assert list(executor.run("decode-6", *asked)) == ["logits", "next_tokens"]
    store = PagedStore(plan, executor, PagePool(4, 16), 2)
    with pytest.raises(NumericError):
        store.choose("prefill", np.ones((1, 3), np.int64), np.array([3]), np.array([0]), np.array([0]), [GREEDY])


def test_a_fault_on_the_way_is_told_and_can_be_closed(toy, driver):
    executor, plan = toy
    driver.fails["sync"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(Dsv2Error, match=r"could not run decode-2: CUDA_ERROR_ILLEGAL_ADDRESS") as e:
        executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    assert e.value.exit_code == 1
    executor.close()
    assert driver.closed


def test_a_capture_that_fails_is_tried_again(toy, driver):
    executor, plan = toy
    driver.fails["launch"] = OUT_OF_MEMORY
    with pytest.raises(ResourceError):
        executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    del driver.fails["launch"]
    executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    assert (driver.count("capture"), driver.count("replay")) == (1, 1)


def test_time_and_profile_come_from_events_of_the_gpu(toy, driver):
    executor, plan = toy
    asked = call(plan, "decode-6", [3] * 4, [1] * 4)
    assert executor.time("decode-6", *asked, repeats=5) == [4.0] * 5
    assert driver.count("capture") == 1 and driver.count("replay") == 6  # one of the two runs before, and all five
    found = executor.profile("decode-6", *asked)
    assert found == [(x.what, 1.0) for x in plan.programs["decode-6"].launches]
    assert driver.count("discard") == 1
    prefill = call(plan, "prefill", [0], [1])
    assert executor.time("prefill", *prefill, repeats=2) == [3.0] * 2
    assert [what for what, _ in executor.profile("prefill", *prefill)] == [
        "embedding",
        "cache write, layer 1",
        "logits",
    ]


# results, with the kernels interpreted


def test_the_host_computes_the_same_through_it(monkeypatch, tmp_path):
    """Prompts, more of two of them, and steps of three sequences that are padded to four, first launched and then
    replayed: logits and cache rows equal those of the host's own executor, which pads nothing. Tokens that are chosen
    on the way are those of its logits."""
    plan, config = native_plans.tiny("bf16")
    driver = InterpretingDriver(plan)
    executor, weights = opened(monkeypatch, plan, tmp_path, driver, slots=6 * 64)
    reference = host.HostExecutor(plan, weights, 6 * 64)
    ours, theirs = (PagedStore(plan, e, PagePool(6, 64), 3) for e in (executor, reference))
    rng, past = np.random.default_rng(), np.zeros(3, np.int64)
    ran = []
    for phase, counts, who in (
        ("prefill", [11, 1, 4], [0, 2, 1]),  # two calls: a program takes two sequences
        ("extend", [9, 4], [2, 0]),
        ("decode", [1, 1, 1], [0, 1, 2]),
        ("decode", [1, 1, 1], [2, 1, 0]),
    ):
        at, new = np.array(who), np.array(counts)
        ids = rng.integers(0, config.vocab_size, (len(who), max(counts)))
        found, expected = (s.append(phase, ids, new, at, past[at]) for s in (ours, theirs))
        np.testing.assert_array_equal(found, expected)
        past[at] += new
        ran.append(len(driver.ran))
    assert (driver.count("capture"), driver.count("replay")) == (1, 1)
    assert ran[3] - ran[2] == ran[2] - ran[1]
    at, ones, draws = np.array([2, 0, 1]), np.ones(3, np.int64), [GREEDY, Draw(Sampling(3.0, 50, 0.95), 0.37), GREEDY]
    logits = theirs.append("decode", ids[:, :1], ones, at, past[at])
    tokens = ours.choose("decode", ids[:, :1], ones, at, past[at], draws)
    assert tokens.tolist() == [sample(row, draw) for row, draw in zip(logits, draws, strict=True)]
    assert driver.count("replay") == 2 and tokens[1] != logits[1].argmax()
    past += 1
    for slot in range(3):
        stored = ours.rows(slot, int(past[slot]))
        assert np.isfinite(stored).all()
        np.testing.assert_array_equal(stored, theirs.rows(slot, int(past[slot])))
    executor.close()
