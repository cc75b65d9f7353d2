"""Each fuzz target for some seconds; `python -m tests.slow.bench_cpp_fuzz` is longer."""

from __future__ import annotations

import subprocess

import pytest

from tests import cpp_build, cpp_fuzz


@pytest.mark.parametrize("target", cpp_fuzz.TARGETS)
def test_any_bytes(target, tmp_path):
    run = cpp_fuzz.fuzz(cpp_fuzz.program(target), cpp_fuzz.CORPUS / target, 3, 1, tmp_path)
    assert not run.finding
    assert run.executions > 100


PLANTED = """
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, unsigned long size) {
  return size > 2 && data[0] == '[' && data[1] == '{' ? data[size] * 0 : 0;
}
"""


def test_a_planted_fault_is_found(tmp_path):
    """One that no seed reaches, built as the targets are."""
    (tmp_path / "target.cpp").write_text(PLANTED)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "seed").write_bytes(b"[1,{},2]")
    sources = [tmp_path / "target.cpp"]
    sanitizers = cpp_build.MEMORY
    if cpp_build.libfuzzer():
        sanitizers += ",fuzzer"
    else:
        sources += [cpp_build.SOURCE / "tests/replay.cpp", cpp_build.SOURCE / "src/base/files.cpp"]
    flags = ["-std=c++17", "-g", f"-fsanitize={sanitizers}", f"-I{cpp_build.SOURCE}/src"]
    subprocess.run([cpp_build.compiler(cpp_build.MEMORY), *flags, *sources, "-o", tmp_path / "target"], check=True)
    run = cpp_fuzz.fuzz(tmp_path / "target", tmp_path / "corpus", 20, 1, tmp_path)
    assert "heap-buffer-overflow" in run.finding
