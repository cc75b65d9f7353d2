"""What `doctor` finds, on this machine and on machines with something missing."""

from __future__ import annotations

import tomllib

import pytest

from dsv2_compile.cli import checks
from tests.cli_tools import ROOT, cli


def test_this_machine():
    ran = cli("doctor")
    assert ran.code == 0, ran.out + ran.err
    for name in (*checks.REQUIRED, "python", "processor", "memory", "disk", "model cache", "GPU"):
        assert any(line[6:].startswith(f"{name}  ") for line in ran.out.splitlines()), name


def test_ranges_are_those_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def wanted(name: str, p: checks.Package) -> str:
        return f"{name}>={p.low}" + (f",<{p.high}" if p.high else "")

    assert sorted(wanted(n, p) for n, p in checks.REQUIRED.items()) == sorted(project["dependencies"])
    optional = [wanted(n, p) for n, p in checks.OPTIONAL.items() if n != "matplotlib"]
    assert set(optional) <= {*extras["cuda"], *extras["serve"], *extras["tensorrt"]}
    assert project["requires-python"] == f">={checks.PYTHON[0]}.{checks.PYTHON[1]}"


def with_onnx(tmp_path, code):
    """Setup of a process in which ``import onnx`` runs ``code``."""
    (tmp_path / "onnx.py").write_text(code)
    return f"import os\nos.environ['PYTHONPATH'] = {str(tmp_path)!r}"


def test_a_package_that_does_not_import_fails(tmp_path):
    ran = cli("doctor", setup=with_onnx(tmp_path, "raise ImportError('libfoo.so: cannot open')"))
    assert ran.code == 5
    assert "does not import: ImportError: libfoo.so" in ran.out
    assert "pip install 'onnx>=" in ran.out
    assert ran.lines[-1].startswith("help: ")
    assert any(line.startswith("  - onnx: ") for line in ran.lines)


def test_a_package_that_crashes_fails(tmp_path):
    answer = cli("doctor", "--json", setup=with_onnx(tmp_path, "import os; os.kill(os.getpid(), 11)")).answer()
    failed = [c for c in answer["checks"] if c["state"] == "fail"]
    assert [c["name"] for c in failed] == ["onnx"]
    assert "crashed with SIGSEGV" in failed[0]["found"]
    assert answer["error"]["code"] == "IncompatibleError"


def test_a_package_that_is_missing_or_out_of_range_fails(monkeypatch):
    monkeypatch.setattr(checks, "_version", lambda name: {"torch": "2.4.0", "sympy": ""}.get(name, "1.5"))
    monkeypatch.setattr(checks, "_outcome", lambda process: ("", ""))
    torch = checks._required("torch", checks.REQUIRED["torch"], object())
    assert (torch.state, torch.found) == ("fail", "2.4.0 is outside torch>=2.11,<2.14")
    assert checks._required("sympy", checks.REQUIRED["sympy"], None).found == "not installed, needed to build"
    assert checks._optional("cuda-bindings", checks.OPTIONAL["cuda-bindings"]).state == "warn"


@pytest.mark.parametrize(
    ("version", "low", "high", "holds"),
    [
        ("2.13.0+cpu", "2.11", "2.14", True),
        ("2.14.0", "2.11", "2.14", False),
        ("2.10.9", "2.11", "2.14", False),
        ("2.11", "2.11", "", True),
        ("3.9.0rc1", "3.6", "3.9", False),
        ("10.0", "9.1", "", True),
        ("unknown", "1", "", False),
    ],
)
def test_ranges(version, low, high, holds):
    assert checks.in_range(version, low, high) is holds


def test_little_memory_and_a_container(tmp_path):
    info, limit = tmp_path / "meminfo", tmp_path / "max"
    info.write_text("MemTotal:  64000000 kB\nMemAvailable:  32000000 kB\n")
    limit.write_text("max\n")
    assert checks.memory(info, limit).state == "ok"
    limit.write_text(f"{2 << 30}\n")
    assert checks.memory(info, limit).state == "warn"
    assert "container limit 2.15 GB" in checks.memory(info, limit).found
    assert checks.memory(tmp_path / "none", limit).state == "warn"


def test_an_old_processor(tmp_path):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu sse sse2\n")
    assert checks.processor(tmp_path / "cpuinfo").state == "warn"
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 fma\n")
    assert checks.processor(tmp_path / "cpuinfo").state == "ok"


def test_where_models_are_kept(tmp_path):
    assert checks.cache({"HF_HOME": str(tmp_path / "a/b")}).found == str(tmp_path / "a/b/hub")
    assert checks.cache({"XDG_CACHE_HOME": str(tmp_path)}).found == str(tmp_path / "huggingface/hub")
    assert checks.cache({"HOME": str(tmp_path)}).found == str(tmp_path / ".cache/huggingface/hub")
    (tmp_path / "file").touch()
    assert checks.cache({"HF_HUB_CACHE": str(tmp_path / "file/x")}).state == "warn"


def test_a_driver_that_crashes_or_hangs_is_a_finding(monkeypatch):
    assert "crashed with SIGSEGV" in checks._gpu(checks._start("import os; os.kill(os.getpid(), 11)")).found
    monkeypatch.setattr(checks, "TIMEOUT", 0.2)
    check = checks._gpu(checks._start("import time; time.sleep(60)"))
    assert (check.state, "no answer" in check.found) == ("warn", True)
