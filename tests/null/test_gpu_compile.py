"""The compile stage: order, failures that cost only themselves, the cache, bytes that depend on the source alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dsv2_compile import processes
from dsv2_compile.backends.cuda import compile as stage
from dsv2_compile.backends.cuda import pool
from dsv2_compile.backends.cuda.build_cache import FOLDER, BuildCache, key
from dsv2_compile.backends.cuda.compile import compile_all, request
from dsv2_compile.backends.cuda.resources import row
from dsv2_compile.backends.cuda.toolchain import check_version, toolchain
from dsv2_compile.cache_folder import cache_folder
from dsv2_compile.errors import IncompatibleError, UsageError
from dsv2_compile.kernels.gpu import aot
from dsv2_compile.kernels.gpu.norm import RMS_NORM
from dsv2_compile.processes import Process, Worker
from dsv2_compile.targets import target
from tests import gpu_fakes, gpu_sources
from tests.gpu_fakes import DOUBLE, FAKES, MATMUL, double, matmul, unlucky

ROOT = Path(__file__).parents[2]
H800, A100 = target("h800"), target("a100")


@pytest.fixture
def cache(tmp_path):
    return BuildCache(tmp_path / "cache")


@pytest.fixture
def compiled(monkeypatch):
    """The jobs that compilers were asked for."""
    seen = []

    run = pool.Pool.run

    def counting(self, jobs):
        seen.extend(jobs)
        return run(self, jobs)

    monkeypatch.setattr(pool.Pool, "run", counting)
    return seen


def compile_fakes(requests, cache, gpu=H800, **options):
    return compile_all(requests, gpu, cache=cache, kernels=FAKES, **options)


def digest(image):
    return hashlib.sha256(image).hexdigest()


def python(code, *args, path=ROOT, **env):
    """Start ``code`` in a fresh interpreter; ``path``: a folder to import from first."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path]), **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)


# What comes back -----------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_requests_and_equal_ones_once(cache, compiled):
    asked = [double(512), double(256), double(512), double(256, dtype="fp32")]
    steps = []
    found = compile_fakes(asked, cache, workers=2, progress=lambda *step: steps.append(step))
    assert [c.request for c in found] == asked
    assert all(c.ok and not c.cached and c.seconds > 0 for c in found)
    assert found[0] is found[2]
    assert len(compiled) == 3
    assert steps == [("double", 1, 3), ("double", 2, 3), ("double", 3, 3)]
    alone = aot.compile_kernel(DOUBLE, {}, {"BLOCK": 256, "num_warps": 4, "num_stages": 1}, "bf16", H800)
    assert found[1].cubin == alone


def test_a_kernel_that_cannot_launch_says_why(cache):
    fits, too_large = compile_fakes([matmul(num_stages=2), matmul(num_stages=6)], cache, A100)
    assert fits.ok and fits.report.matrix == "HMMA"
    assert not too_large.ok
    assert too_large.reason == f"{too_large.cubin.shared} bytes of shared memory per block, a100 allows 166912"
    table = row(too_large, A100)
    assert (table["kernel"], table["target"], table["blocks_per_sm"]) == ("matmul", "a100", 0)
    assert table["shared_bytes"] > 166912 and table["threads"] == 256 and table["reason"] == too_large.reason
    json.dumps(table)


def test_an_fp8_kernel_is_refused_on_sm_80(cache):
    asked = request(MATMUL, {"N": 256}, {**MATMUL.default({}, A100), "BM": 64, "num_stages": 2}, "fp8e4nv")
    (found,) = compile_fakes([asked], cache, A100)
    assert "fp8e4nv" in found.reason


def test_names_that_are_no_kernels_are_a_usage_error(cache):
    with pytest.raises(UsageError, match="unknown kernels: double") as e:
        compile_all([double()], H800, cache=cache, kernels={"matmul": MATMUL})
    assert e.value.remedy == "known are matmul"


def test_a_request_that_makes_no_job_costs_only_itself(cache):
    bad = replace(double(), config=(("BLOCK", 256),))
    good, found = compile_fakes([double(), bad], cache)
    assert good.ok
    assert found.reason == "KeyError: 'num_warps'" and found.cubin is None
    assert row(found, H800)["registers"] is None


# Mishaps -------------------------------------------------------------------------------------------


def sleepers():
    """Processes that `gpu_sources` started in place of a compiler."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if gpu_sources.SLEEP.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            pass
    return found


def no_sleepers():
    """A killed process may take a moment to go."""
    end = time.monotonic() + 10
    while sleepers() and time.monotonic() < end:
        time.sleep(0.02)
    return not sleepers()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_compiler_that_crashes_or_fails_costs_its_own_kernel(cache, workers):
    kinds = ["none", "raise", "segfault", "exit"]
    found = compile_fakes([double(256), *map(unlucky, kinds), double(512)], cache, workers=workers)
    assert [c.ok for c in found] == [True, True, False, False, False, True]
    raised, crashed, ended = found[2:5]
    assert "no such tile" in raised.reason
    assert crashed.reason == "the compiler was ended by SIGSEGV"
    assert "Fatal Python error: Segmentation fault" in crashed.log
    assert ended.reason == "the compiler ended with status 3"
    for kind, failed in zip(kinds[1:], (raised, crashed, ended), strict=True):
        number = list(gpu_sources.MISHAPS).index(kind)
        assert [line for line in failed.log.splitlines() if "about to" in line] == [f"about to {number}"], "its own log"
        assert (failed.cubin, failed.usage, failed.report) == (None, None, None)


def test_a_compiler_that_hangs_costs_its_own_kernel(cache):
    for seconds in (5, 30, 120):  # the other kernel needs its time on a busy machine
        hung, after = compile_fakes([unlucky("hang"), double()], cache, workers=1, timeout=seconds)
        assert hung.reason == f"no answer in {seconds} s"
        assert no_sleepers()
        if after.ok:
            break
    assert after.ok and "about to" in hung.log


def test_failures_are_not_remembered(cache, compiled):
    for _ in range(2):
        (found,) = compile_fakes([unlucky("exit")], cache)
        assert not found.ok
    assert len(compiled) == 2


def test_a_compiler_whose_parent_is_gone_ends_by_itself(tmp_path):
    worker = Process(Worker(pool.MODULE), tmp_path)
    work = aot.job(gpu_fakes.UNLUCKY, {"KIND": 1}, {"num_warps": 1, "num_stages": 1}, "bf16", H800)
    worker.give(0, work, timeout=1.0)
    assert worker._process.wait(timeout=60) == -signal.SIGALRM
    assert worker.stop() == -signal.SIGALRM
    assert no_sleepers()


def test_a_compiler_that_does_not_start_is_named(cache, monkeypatch):
    monkeypatch.setattr(processes, "_CODE", "import time; time.sleep(60)")
    monkeypatch.setattr(pool, "STARTING", 0.5)
    with pytest.raises(IncompatibleError, match="the compiler was not ready after"):
        compile_fakes([double()], cache)


def test_an_interrupt_leaves_no_process(cache):
    def interrupt(what, done, total):
        while not sleepers():
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_fakes([unlucky("hang"), double()], cache, workers=2, progress=interrupt)
    assert no_sleepers()


# The cache -----------------------------------------------------------------------------------------


def test_a_second_run_compiles_nothing(cache, compiled):
    asked = [double(), double(512), matmul(num_stages=6)]
    first = compile_fakes(asked, cache, A100)
    assert len(compiled) == 3 and not first[2].ok
    again = compile_fakes(asked, BuildCache(cache.folder), A100)
    assert len(compiled) == 3
    assert all(c.cached for c in again)
    assert [replace(c, cached=False) for c in again] == first


CHANGES = {
    "constant": double(512),
    "warps": replace(double(), config=(("BLOCK", 256), ("num_stages", 1), ("num_warps", 2))),
    "stages": replace(double(), config=(("BLOCK", 256), ("num_stages", 2), ("num_warps", 4))),
    "dtype": double(dtype="fp16"),
    "claims": double(x=True, out=False),
}


def test_whatever_changes_the_bytes_changes_the_key():
    def of(r, gpu=H800, compilers=None, **change):
        claims = dict.fromkeys(r.aligned, True)
        work = replace(aot.job(DOUBLE, {}, dict(r.config), r.dtype, gpu, claims), **change)
        return key(work, compilers or toolchain(gpu))

    compilers = toolchain(H800)
    keys = {"itself": of(double()), **{name: of(r) for name, r in CHANGES.items()}}
    keys["capability"] = of(double(), A100, compilers)
    keys["source"] = of(double(), source="another")
    keys["fusion"] = of(double(), options=(("num_warps", 4), ("num_stages", 1), ("enable_fp_fusion", False)))
    keys["Triton"] = of(double(), compilers=replace(compilers, triton="another version"))
    keys["ptxas"] = of(double(), compilers=replace(compilers, ptxas="another build"))
    assert len(set(keys.values())) == len(keys)
    assert of(double(), target("h100")) == keys["itself"]
    assert of(double()) == keys["itself"]


def test_each_architecture_names_its_own_ptxas():
    assert toolchain(H800) == toolchain(A100) != toolchain(target("b200"))


TREE = """
import copied, hashlib, json, re
from dsv2_compile.backends.cuda.build_cache import key
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.kernels.gpu.aot import Job, build
from dsv2_compile.targets import target
found = {}
for name in ("h800", "b200"):
    gpu = target(name)
    args = ("x", "*bf16"), ("out", "*bf16"), ("n", "i32")
    job = Job("copied", "double", copied.double.cache_key, args, (("BLOCK", 256),),
              (("num_warps", 4), ("num_stages", 1)), ("x", "out"), gpu.capability)
    image = build(job).image
    texts = [t for t in re.findall(rb"[ -~]{5,}", image) if not t.startswith(b"Build cuda_")]
    held = [t.decode() for t in texts if b"/" in t or b".py" in t or b"copied" in t]
    found[name] = [key(job, toolchain(gpu)), hashlib.sha256(image).hexdigest(), held]
print(json.dumps(found))
"""


def test_the_source_decides_the_bytes_and_the_key_not_where_it_lies(tmp_path):
    """Two copies in different folders and processes, with other hash seeds, and one whose callee was edited."""
    source = (ROOT / "tests/gpu_sources.py").read_text()
    edited = source.replace("return value * 2", "return value * 3")
    assert edited != source
    running = []
    for seed, (folder, text) in enumerate({"a": source, "long/way/down": source, "c": edited}.items()):
        tree = tmp_path / folder
        tree.mkdir(parents=True)
        (tree / "copied.py").write_text(text)
        running.append(python(TREE, path=tree, PYTHONHASHSEED=str(seed)))
    first, second, other = map(result, running)
    assert first == second
    for name in first:
        assert first[name][2] == [], "no path, no file name"
        assert other[name][0] != first[name][0] and other[name][1] != first[name][1]


def test_a_source_that_changes_while_it_compiles_is_not_cached(cache, monkeypatch):
    """The compiler imports what is on disk, here something else than the key was made of."""
    work = aot.job(DOUBLE, {}, DOUBLE.default({}, H800), "bf16", H800)
    monkeypatch.setattr(stage, "job", lambda *args: replace(work, source="another"))
    (found,) = compile_fakes([double()], cache)
    assert found.reason == "ValueError: the source of double has changed since the build began"
    assert not any(p.is_file() for p in cache.folder.rglob("*"))


def test_variables_of_the_environment_do_not_reach_compilers(cache, monkeypatch):
    before = compile_fakes([double()], cache)[0]
    for name, value in {"DISABLE_PTXAS_OPT": "1", "TRITON_DISABLE_LINE_INFO": "0", "PTXAS_OPTIONS": "-G"}.items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(cache.folder)
    after = compile_fakes([double()], cache)[0]
    assert not after.cached and after.cubin == before.cubin


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """A cache with one entry: its folder, the entry's file and its key."""
    folder = tmp_path_factory.mktemp("entry")
    assert compile_all([double()], H800, cache=BuildCache(folder), kernels=FAKES)[0].ok
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    return folder, path, path.name


def damaged(data):
    """Torn at many places, and with a bit of every part flipped."""
    for size in (0, 1, 64, 65, 200, len(data) // 2, len(data) - 1):
        yield f"cut to {size}", data[:size]
    for at in (0, 63, 64, 65, 80, 300, len(data) // 2, len(data) - 1):
        yield f"bit of byte {at}", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    yield "longer", data + b"\n"
    yield "empty object", hashlib.sha256(b"{}\n").hexdigest().encode() + b"\n{}\n"
    yield "a list", hashlib.sha256(b"[]\n").hexdigest().encode() + b"\n[]\n"


def test_a_damaged_entry_is_not_taken(entry, tmp_path):
    folder, path, name = entry
    whole, copy = BuildCache(folder).get(name), BuildCache(tmp_path)
    assert whole
    there = copy.path(name)
    there.parent.mkdir()
    there.write_bytes(path.read_bytes())
    assert copy.get(name) == whole
    for what, data in damaged(path.read_bytes()):
        there.write_bytes(data)
        assert copy.get(name) is None, what


def test_a_damaged_entry_is_built_again(entry, tmp_path, compiled):
    folder, path, name = entry
    cache = BuildCache(tmp_path / "cache")
    shutil.copytree(folder, cache.folder)
    cache.path(name).write_bytes(path.read_bytes()[:-1])
    (found,) = compile_fakes([double()], cache)
    assert found.ok and not found.cached and len(compiled) == 1
    assert cache.get(name).cubin == BuildCache(folder).get(name).cubin == found.cubin


def test_an_entry_under_another_key_is_not_taken(entry, tmp_path):
    _, path, name = entry
    other = hashlib.sha256(name.encode()).hexdigest()
    cache = BuildCache(tmp_path)
    cache.path(other).parent.mkdir()
    shutil.copy(path, cache.path(other))
    assert cache.get(other) is None


def test_a_folder_that_cannot_be_written_costs_time_only(entry, tmp_path):
    (tmp_path / "file").write_text("")
    cache = BuildCache(tmp_path / "file")
    (found,) = compile_fakes([double()], cache)
    assert found.ok and not found.cached
    assert cache.put("ab", BuildCache(entry[0]).get(entry[2])) is False


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("DSV2_CACHE_DIR", str(tmp_path))
    assert BuildCache().folder == tmp_path / "kernels"
    assert BuildCache(tmp_path / "mine").folder == tmp_path / "mine"
    monkeypatch.delenv("DSV2_CACHE_DIR")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder(FOLDER) == Path("/home/somebody/.cache/dsv2-compile/kernels")


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from dsv2_compile.backends.cuda.build_cache import BuildCache
source, folder, name, seconds = sys.argv[1:]
built, cache = BuildCache(Path(source)).get(name), BuildCache(Path(folder))
for i in range(300):
    assert cache.put(name, replace(built, seconds=float(seconds)))
    assert cache.put(f"{seconds}-{i}", built) is True
print(1)
"""


def test_processes_that_write_at_once_lose_nothing(entry, tmp_path):
    folder, _, name = entry
    cache, whole = BuildCache(tmp_path), BuildCache(folder).get(name)
    running = [python(WRITER, folder, tmp_path, name, seconds) for seconds in (1.0, 2.0)]
    seen = set()
    while any(p.poll() is None for p in running):
        found = cache.get(name)
        if seen or found:
            assert replace(found, seconds=0.0) == replace(whole, seconds=0.0)
            seen.add(found.seconds)
    assert [result(p) for p in running] == [1, 1]
    assert seen <= {1.0, 2.0} and seen
    assert all(cache.get(f"{s}-{i}") == whole for s in (1.0, 2.0) for i in range(300))
    assert [p for p in tmp_path.rglob(".*")] == [], "no temporary files"


COMPILE = """
import sys
from pathlib import Path
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import compile_all
from dsv2_compile.targets import target
from tests.gpu_fakes import FAKES, double
asked = [double(b) for b in map(int, sys.argv[2:])]
print(int(all(c.ok for c in compile_all(asked, target("h800"), cache=BuildCache(Path(sys.argv[1])), kernels=FAKES))))
"""


def test_two_builds_at_once_share_a_cache(cache, compiled):
    running = [python(COMPILE, cache.folder, *blocks) for blocks in ((128, 256), (256, 512))]
    assert [result(p) for p in running] == [1, 1]
    found = compile_fakes([double(b) for b in (128, 256, 512)], cache)
    assert all(c.ok and c.cached for c in found) and compiled == []


# Versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.8.0", "3.8.1+git1234"])
def test_versions_that_are_supported(version):
    check_version(version)


@pytest.mark.parametrize(
    ("version", "why"), [("3.5.1", "older than 3.6"), ("3.9.0", "ELF ABI"), ("4.0", "newer than 3.8"), ("?", "older")]
)
def test_versions_that_are_not(version, why):
    with pytest.raises(IncompatibleError, match=why) as e:
        check_version(version)
    assert e.value.exit_code == 5
    assert version in e.value.cause and "'triton>=3.6,<3.9'" in e.value.remedy


def test_compiling_without_triton_is_refused(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(IncompatibleError, match="GPU kernels need Triton") as e:
        compile_fakes([double()], cache)
    assert e.value.exit_code == 5


def test_a_version_that_is_not_supported_compiles_nothing(cache, monkeypatch, compiled):
    monkeypatch.setattr("triton.__version__", "3.9.0")
    with pytest.raises(IncompatibleError, match="ELF ABI"):
        compile_fakes([double()], cache)
    assert compiled == []


def test_the_interpreter_variable_is_named(cache, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(IncompatibleError, match="TRITON_INTERPRET"):
        compile_fakes([double()], cache)


def test_a_registered_kernel_compiles_for_old_and_new(cache):
    dims = {"N": 2048, "X_STRIDE": 2048, "EPS": 1e-6, "RESIDUAL": True, "INDEXED": False}
    for name in ("a100", "b200"):
        gpu = target(name)
        (found,) = compile_all([request(RMS_NORM, dims, RMS_NORM.default(dims, gpu), "bf16")], gpu, cache=cache)
        assert found.ok, found
        assert found.usage.architecture == gpu.capability
