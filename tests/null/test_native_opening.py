"""Opening a native engine without a GPU: where weights and kernels go, what a machine that cannot run it is told."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from dsv2_compile.errors import Dsv2Error, IncompatibleError, IntegrityError, ResourceError, UsageError
from dsv2_compile.runtime.native import cuda, cuda_core
from dsv2_compile.runtime.native.driver import OUT_OF_MEMORY
from dsv2_compile.runtime.native.memory import weight_layout
from tests import native_plans
from tests.native_driver import RecordingDriver
from tests.native_executor import SLOTS, call, opened, placements


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
    placed = placements()
    buffers = dict(plan.programs["prefill"].buffers) | {"tied": plan.programs["prefill"].buffers["embed"]}
    plan = replace(plan, programs={"prefill": replace(plan.programs["prefill"], buffers=buffers)})
    layout = weight_layout(plan, placed | {"tied": placed["embed"]})
    assert layout.offsets["tied"] == layout.offsets["embed"] != layout.offsets["head"]
    assert len(layout.reads) == 2 and layout.nbytes == 512 + 256


def test_weights_that_are_not_the_plans_are_refused():
    plan = native_plans.toy()
    placed = placements()
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
