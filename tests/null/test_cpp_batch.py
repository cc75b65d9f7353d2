"""Programs of checks of the C++ runtime, on what needs no engine: see tests/unit_*.cpp there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import batch_vectors, cpp_build

PROGRAMS = ("unit_sampling", "unit_session", "unit_scheduler", "unit_abi")


def run(program: Path, *arguments: str | Path) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_vectors_of_continuous_batching() -> None:
    run(cpp_build.program("unit_batch"), batch_vectors.FOLDER)


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    """In the order of events, in a refusal's code and in a call of the session."""
    vector = (batch_vectors.FOLDER / "refusals.json").read_text()
    (tmp_path / "sound.json").write_text(vector)
    run(cpp_build.program("unit_batch"), tmp_path)
    for key, old, new in (("trace", '"length"', '"stop"'), ("refusals", "6", "2"), ("calls", '"start"', '"resume"')):
        head, tail = vector.split(f'"{key}":')
        assert old in tail
        (tmp_path / "sound.json").write_text(f'{head}"{key}":{tail.replace(old, new, 1)}')
        done = subprocess.run([cpp_build.program("unit_batch"), tmp_path], capture_output=True, text=True)
        assert done.returncode == 1, key


@pytest.mark.parametrize("name", PROGRAMS)
def test_checks(name: str) -> None:
    run(cpp_build.program(name))
