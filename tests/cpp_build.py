"""The C++ runtime as the tests use it: built once, for all test processes together."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "dsv2_compile" / "runtime" / "cpp"
BUILDS = Path(os.environ.get("DSV2_CPP_BUILD", ROOT / "build" / "cpp"))
"""A folder a kind of build, kept from run to run."""
MEMORY, THREADS = "address,undefined", "thread"
"""Sanitizers."""
CLANG = "clang++"


@cache
def libfuzzer() -> bool:
    """Whether there is a clang++ that has it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "target.cpp"
        source.write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, decltype(sizeof 0)) { return 0; }\n')
        words = [f"-fsanitize=fuzzer,{MEMORY}", str(source), "-o", f"{folder}/target"]
        return bool(shutil.which(CLANG)) and not subprocess.run([CLANG, *words], capture_output=True).returncode


def compiler(sanitize: str = "") -> str:
    return CLANG if sanitize == MEMORY and libfuzzer() else "c++"


@cache
def built(sanitize: str = "", *targets: str) -> Path:
    """The build folder, with library and test programs, or ``targets``; ``sanitize`` as of DSV2_SANITIZE. Skips the
    test where there is nothing to build with; a build that fails is an AssertionError with its output."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"the C++ runtime is built with {tool}")
    folder = BUILDS / (sanitize.replace(",", "-") or "plain")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kind = "RelWithDebInfo" if sanitize else "Release"
        coverage = ",fuzzer-no-link" if compiler(sanitize) == CLANG else ""  # so that fuzz targets use the same objects
        made = [f"-DDSV2_SANITIZE={sanitize}{coverage}", f"-DCMAKE_CXX_COMPILER={compiler(sanitize)}"]
        made += ["-DDSV2_TESTS=ON", f"-DCMAKE_BUILD_TYPE={kind}", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
        _run("cmake", "-S", str(SOURCE), "-B", str(folder), *made)
        some = ("--target", *targets) if targets else ()
        _run("cmake", "--build", str(folder), "--parallel", str(len(os.sched_getaffinity(0))), *some)
    return folder


def library() -> Path:
    return built() / "libdsv2.so"


def program(name: str, sanitize: str = "") -> Path:
    """A test program, as unit_batch."""
    return built(sanitize, *([name] if sanitize else [])) / "tests" / name


def embedded(source: Path, folder: Path) -> Path:
    """``source``, one program that embeds the library, compiled into ``folder``."""
    out, include = folder / source.stem, SOURCE / "include"
    linked = [str(library()), f"-Wl,-rpath,{library().parent}"]
    _run("c++", "-std=c++17", "-O2", f"-I{include}", str(source), *linked, "-o", str(out))
    return out


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
