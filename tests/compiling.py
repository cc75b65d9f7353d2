"""What tests of the compile stage share: fake kernels compiled, jobs counted, code run in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dsv2_compile.backends.cuda import pool
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import Compiled, compile_all
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.kernels.gpu import aot
from dsv2_compile.targets import Target, target
from tests.gpu_fakes import FAKES

ROOT = Path(__file__).parents[1]
H800, A100 = target("h800"), target("a100")


def jobs_asked(monkeypatch: pytest.MonkeyPatch) -> list[aot.Job]:
    """The jobs that compilers are asked for from now on."""
    seen: list[aot.Job] = []
    run = pool.Pool.run

    def counting(self: pool.Pool, jobs: Sequence[aot.Job]) -> Any:
        seen.extend(jobs)
        return run(self, jobs)

    monkeypatch.setattr(pool.Pool, "run", counting)
    return seen


def compile_fakes(requests: Sequence[Request], cache: BuildCache, gpu: Target = H800, **options: Any) -> list[Compiled]:
    return compile_all(requests, gpu, cache=cache, kernels=FAKES, **options)


def python(code: str, *args: object, path: Path = ROOT, **env: str) -> subprocess.Popen[str]:
    """Start ``code`` in a fresh interpreter; ``path``: a folder to import from first."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path]), **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> Any:
    """What it printed, as JSON."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)
