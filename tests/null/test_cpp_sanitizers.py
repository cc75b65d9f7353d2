"""The programs of checks once more, under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import batch_vectors, cpp_build
from tests.null.test_cpp_batch import run

ARGUMENTS = {"unit_batch": (batch_vectors.FOLDER,)}
THREADED = ("unit_session", "unit_scheduler", "unit_abi", "unit_paged_store")
"""Those with more than one thread."""


def programs() -> list[str]:
    return sorted(path.stem for path in (cpp_build.SOURCE / "tests").glob("unit_*.cpp"))


@pytest.mark.parametrize("name", programs())
def test_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "allocator_may_return_null=1")  # as everywhere else: some ask for too much
    run(cpp_build.program(name, cpp_build.MEMORY), *ARGUMENTS.get(name, ()))


@pytest.mark.parametrize("name", THREADED)
def test_threads(name: str) -> None:
    run(cpp_build.program(name, cpp_build.THREADS))


@pytest.mark.parametrize(
    ("sanitizer", "fault", "found"),
    [
        ("address,undefined", "int* p = new int(count); delete p; return *p;", "heap-use-after-free"),
        ("address,undefined", "int n = 0x7fffffff; return n + count;", "signed integer overflow"),
        ("address,undefined", "return *new int(count) * 0;", "detected memory leaks"),
        ("thread", "int n = 0; std::thread t([&] { ++n; }); ++n; t.join(); return n * 0;", "data race"),
    ],
    ids=["use-after-free", "overflow", "leak", "race"],
)
def test_the_sanitizers_are_awake(tmp_path: Path, sanitizer: str, fault: str, found: str) -> None:
    """A program that is wrong, built as the others are, says so."""
    cpp_build.program("unit_sampling", sanitizer)
    flags = _flags(cpp_build.BUILDS / sanitizer.replace(",", "-"))
    source = tmp_path / "fault.cpp"
    source.write_text(f"#include <thread>\nint main(int count, char**) {{ {fault} }}\n")
    words = ["-std=c++17", *flags, source, "-o", tmp_path / "fault", "-pthread"]
    subprocess.run([cpp_build.compiler(sanitizer), *words], check=True)
    done = subprocess.run([tmp_path / "fault"], capture_output=True, text=True)
    assert done.returncode
    assert found in done.stderr


def _flags(folder: Path) -> list[str]:
    """The sanitizer's options with which ``folder`` was built."""
    for file in folder.glob("tests/CMakeFiles/unit_sampling.dir/flags.make"):
        return [word for word in file.read_text().split() if word.startswith(("-fsanitize", "-fno-sanitize"))]
    raise AssertionError(f"{folder} has no flags of unit_sampling")
