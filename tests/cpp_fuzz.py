"""The fuzz targets of the C++ runtime (runtime/cpp/tests/fuzz_*.cpp), built and run under sanitizers.

By libFuzzer where clang++ has it, else by the compiler there is, with runtime/cpp/tests/replay.cpp for its main.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests import cpp_build

CORPUS = cpp_build.SOURCE / "tests" / "corpus"
TARGETS = tuple(sorted(p.stem.removeprefix("fuzz_") for p in (cpp_build.SOURCE / "tests").glob("fuzz_*.cpp")))


def program(target: str) -> Path:
    return cpp_build.program(f"fuzz_{target}", cpp_build.MEMORY)


@dataclass(frozen=True)
class Run:
    """``finding``: empty, or what the sanitizer or the target's own check said at the end."""

    executions: int
    finding: str


def fuzz(program: Path, corpus: Path, seconds: int, seed: int, scratch: Path) -> Run:
    """``scratch``: where libFuzzer keeps inputs that reached something new, and those that are findings."""
    if cpp_build.libfuzzer():
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
