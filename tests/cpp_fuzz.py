"""The fuzz targets of the C++ runtime (runtime/cpp/tests/fuzz_*.cpp), built and run under sanitizers.

By libFuzzer where clang++ has it, else by the compiler there is, with runtime/cpp/tests/replay.cpp for its main.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests import cpp_build

SANITIZERS = "address,undefined"
CORPUS = cpp_build.SOURCE / "tests" / "corpus"
TARGETS = tuple(sorted(p.stem.removeprefix("fuzz_") for p in (cpp_build.SOURCE / "tests").glob("fuzz_*.cpp")))


@cache
def libfuzzer() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "target.cpp"
        source.write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, decltype(sizeof 0)) { return 0; }\n')
        words = [f"-fsanitize=fuzzer,{SANITIZERS}", str(source), "-o", f"{folder}/target"]
        return bool(shutil.which("clang++")) and not subprocess.run(["clang++", *words], capture_output=True).returncode


def compiler() -> str:
    return "clang++" if libfuzzer() else "c++"


def program(target: str) -> Path:
    targets = tuple(f"fuzz_{t}" for t in TARGETS)
    if libfuzzer():
        folder = cpp_build.built(f"{SANITIZERS},fuzzer-no-link", "-DCMAKE_CXX_COMPILER=clang++", targets=targets)
    else:
        folder = cpp_build.built(SANITIZERS)
    return folder / "tests" / f"fuzz_{target}"


@dataclass(frozen=True)
class Run:
    """``finding``: empty, or what the sanitizer or the target's own check said at the end."""

    executions: int
    finding: str


def fuzz(program: Path, corpus: Path, seconds: int, seed: int, scratch: Path) -> Run:
    """``scratch``: where libFuzzer keeps inputs that reached something new, and those that are findings."""
    if libfuzzer():
        kept = scratch / "kept"
        kept.mkdir(exist_ok=True)
        limits = ["-max_len=8192", "-timeout=20", "-rss_limit_mb=2048", f"-artifact_prefix={scratch}/"]
        words = [f"-max_total_time={seconds}", f"-seed={seed}", *limits, str(kept), str(corpus)]
    else:
        words = [str(corpus), str(seconds), str(seed)]
    done = subprocess.run([program, *words], capture_output=True, text=True, errors="replace")
    said = re.search(r"^Done (\d+) runs", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode == 0 and said:
        return Run(int(said[1]), "")
    return Run(0, (done.stdout + done.stderr)[-6000:] or f"ended with {done.returncode}")
