"""GPU engines in C++ without a GPU: what is asked of the driver is what Python asks of it, and what a machine that
cannot run an engine is told. That a GPU then computes the same is not shown here."""

from __future__ import annotations

import shutil
import subprocess
import threading
from dataclasses import replace

import numpy as np
import pytest

from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.runtime import Draw, Engine, Sampling
from dsv2_compile.runtime.native import cuda, cuda_core
from dsv2_compile.targets import TARGETS
from tests import cpp_abi, cpp_build, cpp_native
from tests.compiling import compile_fakes
from tests.cpp_abi import INCOMPATIBLE, INTEGRITY, INTERNAL, NUMERIC, RESOURCE, AbiError
from tests.cpp_native import MAX_BATCH, MAX_SEQ, ZeroDriver, relative
from tests.cubin_files import cubin, elf
from tests.gpu_fakes import double

UNITS = ("unit_plan", "unit_native", "unit_paged_store")
PAGES = MAX_BATCH * MAX_SEQ // 16


@pytest.fixture(scope="module")
def library():
    return cpp_abi.Library(cpp_build.library())


@pytest.fixture(scope="module")
def engine_path(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines") / "gpu"
    cpp_native.build(out)
    return out


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Gives the process a driver of its own, a copy of the stand-in: settings by the names of its variables. -> its
    log."""

    def give(**settings) -> object:
        copy, log = tmp_path / "libcuda.so.1", tmp_path / "log"
        shutil.copy(cpp_build.built() / "tests" / "libdsv2_cuda_stub.so", copy)
        monkeypatch.setenv("DSV2_LIBCUDA", str(copy))
        for name, value in {"LOG": log, **settings}.items():
            monkeypatch.setenv(f"DSV2_STUB_{name}", str(value))
        return log

    return give


def by_python(monkeypatch, path, calls, **options):
    """What a driver is asked for, and what the calls gave."""
    driver = ZeroDriver()
    for module in (cuda, cuda_core):
        monkeypatch.setattr(module, "open_driver", lambda device: driver)
    with Engine.load(path, **options) as engine, engine.session(MAX_BATCH) as session:
        found = [getattr(session, name)(*arguments) for name, arguments in calls]
        pages = engine.pages.free
    return driver.lines, found, pages


def by_cpp(library, log, path, calls, **options):
    with library.load(path, **options) as engine, engine.session(MAX_BATCH) as session:
        found = [getattr(session, name)(*arguments) for name, arguments in calls]
        pages = engine.info.pages_free
    return log.read_text().splitlines(), found, pages


@pytest.mark.parametrize("unit", UNITS)
def test_parts(unit):
    done = subprocess.run([cpp_build.program(unit)], capture_output=True, text=True)
    assert not done.returncode, done.stderr


@pytest.mark.parametrize("seed, options", [(1, {}), (2, {"cache_tokens": MAX_BATCH * MAX_SEQ})])
def test_the_driver_is_asked_for_the_same(monkeypatch, library, gpu, engine_path, seed, options):
    calls = cpp_native.random_calls(seed, 60)
    expected, results, free = by_python(monkeypatch, engine_path, calls, **options)
    got, found, left = by_cpp(library, gpu(), engine_path, calls, **options)
    assert relative(got) == relative(expected) and free == left
    for (name, _), a, b in zip(calls, results, found, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or (a.shape == b.shape and not np.any(a) and not np.any(b)), name
    kinds = [words[0] for words in relative(got)]
    assert kinds.count("replay") > 5 and kinds.count("graph") >= 3 and kinds.count("launch") > 200
    assert {int(w[2]) for w in relative(got) if w[:2] == ("launch", "k0")} >= {1, 2, 4, 6, 7}


@pytest.mark.parametrize(
    "harm",
    [
        lambda words: (*words[:7], words[8], words[7], *words[9:]),  # two arguments the other way round
        lambda words: (*words[:7], words[7].replace("+", "+1"), *words[8:]),  # another address
        lambda words: (*words[:2], str(int(words[2]) + 1), *words[3:]),  # another grid
        lambda words: (*words[:6], "0", *words[7:]),  # no shared memory
        lambda words: (),
    ],
)
def test_a_difference_of_a_launch_would_be_seen(monkeypatch, library, gpu, engine_path, harm):
    """Planted in the log of a run that agrees."""
    calls = cpp_native.random_calls(3, 4)
    expected, *_ = by_python(monkeypatch, engine_path, calls)
    got, *_ = by_cpp(library, gpu(), engine_path, calls)
    spoilt = relative(got)
    assert spoilt == relative(expected)
    at = max(i for i, words in enumerate(spoilt) if words[:2] == ("launch", "k1"))
    spoilt[at] = harm(spoilt[at])
    assert spoilt != relative(expected)


def test_another_page_would_be_seen(monkeypatch, library, gpu, engine_path):
    """The bytes of the inputs are compared: a session whose pages lie elsewhere differs in them alone."""
    calls = [("prefill", (np.ones((1, 4), int), [4], [0]))]
    expected, *_ = by_python(monkeypatch, engine_path, calls)
    log = gpu()
    with library.load(engine_path) as engine, engine.session(1) as other, engine.session(MAX_BATCH) as session:
        other.prefill(np.ones((1, 20), int), [20])
        session.prefill(*calls[0][1])
    got = relative(log.read_text().splitlines())
    ours, theirs = ([w for w in lines if w[0] == "copy_in"][-1] for lines in (got, relative(expected)))
    assert ours[:3] == theirs[:3] and ours[3] != theirs[3]


def test_pages_are_shared_and_come_back(library, gpu, engine_path):
    gpu()
    with library.load(engine_path, cache_tokens=100) as engine:
        assert (engine.info.page_size, engine.info.page_count, engine.info.pages_free) == (16, 7, 7)
        one, two = engine.session(2), engine.session(2)
        one.prefill(np.ones((2, 40), int), [40, 1])
        assert engine.info.pages_free == 3
        with pytest.raises(AbiError, match=r"has 3 free pages of 16 tokens, 4 are needed") as e:
            two.prefill(np.ones((1, 49), int), [49])
        assert e.value.code == RESOURCE and engine.info.pages_free == 3
        one.free([0])
        two.prefill(np.ones((1, 49), int), [49])
        one.close()
        assert engine.info.pages_free == 3
        two.close()
        assert engine.info.pages_free == 7


def test_nan_and_tokens_that_nothing_wrote_are_refused(library, gpu, engine_path):
    gpu(READS=255)
    with library.load(engine_path) as engine, engine.session(1) as session:
        tokens = np.ones((1, 20), int)
        with pytest.raises(AbiError, match=r"prefill gave NaN or infinity for slots \[0\]") as e:
            session.prefill(tokens, [20])
        assert e.value.code == NUMERIC and engine.info.pages_free == PAGES
        with pytest.raises(AbiError, match="gave NaN") as e:
            session.start(tokens, [20], [Draw(Sampling(), 0.0)])
        assert e.value.code == NUMERIC and engine.info.pages_free == PAGES


def test_a_fault_on_the_way_is_told_and_can_be_closed(library, gpu, engine_path):
    gpu(FAIL="cuLaunchKernel 6 700")
    with library.load(engine_path) as engine, engine.session(1) as session:
        session.prefill(np.ones((1, 4), int), [4])
        with pytest.raises(AbiError, match=r"could not run decode-2: CUDA_ERROR_ILLEGAL_ADDRESS") as e:
            session.decode([1])
        assert e.value.code == INTERNAL and session.length(0) == 4


def test_threads_wait_for_each_other(library, gpu, engine_path):
    log = gpu()
    failed = []

    def work(session, seed) -> None:
        try:
            for name, arguments in cpp_native.random_calls(seed, 40):
                getattr(session, name)(*arguments)
            session.close()
        except BaseException as e:
            failed.append(e)

    with library.load(engine_path, cache_tokens=4 * MAX_BATCH * MAX_SEQ) as engine:
        threads = [threading.Thread(target=work, args=(engine.session(MAX_BATCH), i)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not failed and engine.info.pages_free == engine.info.page_count
    lines = log.read_text().splitlines()
    assert not [line for line in lines if line.startswith("fault")]
    assert [line.split()[0] for line in lines[-6:]] == ["free"] * 6


GPUS = {t.capability for t in TARGETS.values() if t.is_gpu}


@pytest.mark.parametrize("capability", sorted({*GPUS, "sm_75"} - {"sm_90"}))
def test_another_architecture_is_told_as_python_tells_it(monkeypatch, library, gpu, engine_path, capability):
    number = capability.removeprefix("sm_")
    gpu(CAPABILITY=f"{number[:-1]}.{number[-1]}")
    driver = ZeroDriver()
    driver.capability = capability
    monkeypatch.setattr(cuda_core, "open_driver", lambda device: driver)
    with pytest.raises(IncompatibleError) as expected:
        Engine.load(engine_path)
    with pytest.raises(AbiError) as e:
        library.load(engine_path)
    assert (e.value.code, e.value.cause, e.value.remedy) == (5, expected.value.cause, expected.value.remedy)


@pytest.mark.parametrize(
    "settings, code, cause, remedy",
    [
        ({"DEVICES": 0}, INCOMPATIBLE, "There is no GPU 0: the driver finds 0.", "nvidia-smi"),
        ({"VERSION": 11080}, INCOMPATIBLE, "The NVIDIA driver is for CUDA 11.8, 12.0 is needed.", "Update the driver"),
        ({"FAIL": "cuInit 1 803"}, INCOMPATIBLE, "does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "nvidia-smi"),
        ({"FAIL": "cuModuleLoadData 2 209"}, INCOMPATIBLE, "could not load kernels/1.cubin (it is for CUDA 13.0): "
         "CUDA_ERROR_NO_BINARY_FOR_GPU", "Update the NVIDIA driver"),
        ({"FAIL": "cuModuleLoadData 2 2"}, RESOURCE, "no memory left to load kernels/1.cubin", "free memory"),
        ({"PARAMETERS": 1}, INCOMPATIBLE, "kernels/0.cubin takes parameters of (8, 8, 8, 4, 8, 8, 8) bytes, the plan "
         "has (8, 8, 8, 4, 8, 8).", "Rebuild"),
        ({"FREE": 4000}, RESOURCE, "of GPU memory; 0.00 of 2199.02 GB are free on no GPU.", "shorter sequences"),
        ({"FAIL": "cuMemAlloc_v2 3 2"}, RESOURCE, "The GPU has no memory left to reserve 0.00 GB", "free memory"),
        ({"FAIL": "cuMemAllocHost_v2 1 2"}, RESOURCE, "no memory left to take the weights", "free memory"),
        ({"FAIL": "cuMemcpyHtoDAsync_v2 1 1"}, INTERNAL, "The GPU could not take the weights: "
         "CUDA_ERROR_INVALID_VALUE: as the test wants.", "Report"),
        ({"FAIL": "cuDevicePrimaryCtxRetain 1 2"}, RESOURCE, "no memory left to be opened", "free memory"),
        ({"FAIL": "cuStreamCreate 1 700"}, INTERNAL, "could not be opened: CUDA_ERROR_ILLEGAL_ADDRESS", "Report"),
    ],
)  # fmt: skip
def test_a_machine_that_cannot_run_the_engine(library, gpu, engine_path, settings, code, cause, remedy):
    log = gpu(**settings)
    with pytest.raises(AbiError) as e:
        library.load(engine_path)
    assert e.value.code == code and cause in e.value.cause and remedy in e.value.remedy
    lines = [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []
    assert lines.count("alloc") == lines.count("free")


def test_without_a_driver(monkeypatch, library, engine_path, tmp_path):
    monkeypatch.setenv("DSV2_LIBCUDA", str(tmp_path / "none.so"))
    with pytest.raises(AbiError, match="There is no NVIDIA driver") as e:
        library.load(engine_path)
    assert e.value.code == INCOMPATIBLE and "--cpu" in e.value.remedy
    shutil.copy(cpp_build.library(), tmp_path / "none.so")
    with pytest.raises(AbiError, match=r"driver is too old: .* has no cuInit") as e:
        library.load(engine_path)
    assert e.value.code == INCOMPATIBLE


PLAN = cpp_native.plan()
ELSEWHERE = replace(PLAN, kernels=(replace(PLAN.kernels[0], cubin="../x.cubin"), *PLAN.kernels[1:]))


@pytest.mark.parametrize(
    "changes, code, cause",
    [
        ({"image": lambda k: b"no ELF" * 20}, INTEGRITY, "kernels/0.cubin is no 64-bit ELF file."),
        ({"image": lambda k: elf(k.symbol, (8,), machine=62)}, INTEGRITY, "kernels/0.cubin is not for a GPU."),
        ({"image": lambda k: elf("other", (8,))}, INTEGRITY, "kernels/0.cubin has no kernel k0."),
        ({"image": lambda k: cubin(k)[:-1]}, INTEGRITY, "kernels/0.cubin is cut short."),
        ({"image": lambda k: elf(k.symbol, (8, 8))}, INCOMPATIBLE, "takes parameters of (8, 8) bytes, the plan has"),
        ({"built": ELSEWHERE}, INTEGRITY, "The plan names a file that is not one of the engine: '../x.cubin'."),
        ({"files": {"plan.json": b"{}"}}, INTEGRITY, "plan.json is malformed"),
        ({"files": {"plan.json": b'{"schema": "dsv2/plan/9"}'}}, INCOMPATIBLE, "has schema dsv2/plan/9"),
        ({"model": replace(cpp_native.CONFIG, vocab_size=11)}, INCOMPATIBLE, "The plan is of another vocabulary"),
        ({"model": replace(cpp_native.CONFIG, kv_lora_rank=8)}, INCOMPATIBLE, "The plan is of another cache"),
        ({"max_seq_len": 65}, INCOMPATIBLE, "The plan has fewer pages a sequence"),
    ],
)
def test_an_engine_that_is_none(library, gpu, tmp_path, changes, code, cause):
    gpu()
    cpp_native.build(tmp_path / "engine", **changes)
    with pytest.raises(AbiError) as e:
        library.load(tmp_path / "engine")
    assert e.value.code == code and cause in e.value.cause


def test_a_compiled_kernel_says_what_it_takes(library, gpu, tmp_path):
    """Of the compiler's own cubins too the parameters are read, whatever the driver tells."""
    (found,) = compile_fakes([double()], BuildCache(tmp_path / "cache"))
    plan = cpp_native.plan()
    first = replace(plan.kernels[0], symbol="double")
    built = replace(plan, kernels=(first, *plan.kernels[1:]))
    gpu()
    cpp_native.build(tmp_path / "engine", built, lambda k: found.cubin.image if k == first else cubin(k))
    with pytest.raises(AbiError, match=r"takes parameters of \(8, 8, 4, 8, 8\) bytes, the plan has") as e:
        library.load(tmp_path / "engine")
    assert e.value.code == INCOMPATIBLE
