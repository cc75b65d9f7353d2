"""The build cache: a second run compiles nothing, keys depend on the source alone, damage is not taken."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dsv2_compile.backends.cuda import compile as stage
from dsv2_compile.backends.cuda.build_cache import FOLDER, BuildCache, key
from dsv2_compile.backends.cuda.compile import compile_all
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.cache_folder import cache_folder
from dsv2_compile.kernels.gpu import aot
from dsv2_compile.targets import target
from tests.compiling import A100, H800, ROOT, compile_fakes, jobs_asked, python, result
from tests.gpu_fakes import DOUBLE, FAKES, double, matmul


@pytest.fixture
def cache(tmp_path):
    return BuildCache(tmp_path / "cache")


@pytest.fixture
def compiled(monkeypatch):
    return jobs_asked(monkeypatch)


def digest(image):
    return hashlib.sha256(image).hexdigest()


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
