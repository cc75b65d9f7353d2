"""The layout of the project: who imports whom, and that a wheel holds all of it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv2_compile.runtime import Engine
from tests import toy_engine

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dsv2_compile"
LINKED = ("passes", "kernels", "autotune")
COMPILER_ONLY = {"torch", "onnx", "triton", "sympy"}

FORBIDDEN = {
    "runtime": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "checkpoint", "export", "kernels"},
    "engine": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "checkpoint", "export", "runtime"},
    "plan": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "checkpoint", "kernels", "runtime"},
    "kernels": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "checkpoint", "runtime", "engine"},
    "passes": {"cli", "pipeline", "compiler", "backends", "verify", "checkpoint", "runtime", "engine"},
    "backends": {"cli", "pipeline", "compiler", "checkpoint", "runtime", "verify"},
    "checkpoint": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "runtime", "export"},
    "model": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "runtime", "engine", "export"},
    "verify": {"cli", "pipeline", "compiler", "backends"},
    "devices": {"cli", "pipeline", "compiler", "checkpoint", "verify", "passes", "autotune", "gpu_check"},
    "autotune": {"cli", "pipeline", "compiler", "checkpoint", "verify", "export", "gpu_check"},
    "serve": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "checkpoint", "export", "kernels"},
    "package": {"cli", "pipeline", "compiler", "passes", "backends", "verify", "checkpoint", "export", "kernels"},
}
"""folder -> the parts of the package it may not import, whatever it needs them for."""

PLANTED = "planted.jsonl"
"""Stands for a file of tuning records, of which there need be none."""
WRITING = {"writer.py", "shards.py"}
"""Files of engine/ that only a build uses."""


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Full names of what a file imports, those under ``if TYPE_CHECKING`` left out."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= {n for statement in node.body for n in ast.walk(statement)}
        if top_level_only and isinstance(node, ast.FunctionDef):
            skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{a.name}" for a in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_go_one_way(folder):
    bad = []
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "dsv2_compile" and len(parts) > 1 and parts[1] in FORBIDDEN[folder]:
                bad.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not bad, "\n".join(bad)


def test_what_serves_an_engine_imports_no_compiler():
    files = [p for folder in ("runtime", "plan", "serve", "package") for p in (PACKAGE / folder).rglob("*.py")]
    files += [p for p in (PACKAGE / "engine").rglob("*.py") if p.name not in WRITING]
    files += [PACKAGE / f for f in ("config.py", "errors.py", "targets.py", "__init__.py")]
    bad = [f"{p.name}: {n}" for p in files for n in imports(p) if n.split(".")[0] in COMPILER_ONLY]
    assert not bad, bad
    code = (
        "import sys; import dsv2_compile.runtime, dsv2_compile.serve, dsv2_compile.package\n"
        f"loaded = {COMPILER_ONLY!r} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_imported_under_a_bare_name():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        bare = [n for n in imports(path) if n.split(".")[0] in LINKED]
        assert not bare, f"{path}: {bare}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, built from a copy, so that a build leaves nothing in the tree."""
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
    (source / "artifacts" / "tuning" / PLANTED).write_text("{}\n")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([*command, str(source)], check=True)
    (path,) = out.glob("*.whl")
    return path


def test_a_wheel_holds_every_module_and_schema_as_a_real_file(wheel):
    with zipfile.ZipFile(wheel) as z:
        held = {n for n in z.namelist() if n.startswith("dsv2_compile/")}
    wanted = set()
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        here = Path(folder).relative_to(ROOT)
        if "__pycache__" not in here.parts and not here.is_relative_to("dsv2_compile/runtime/cpp/tests"):
            wanted |= {
                (here / n).as_posix()
                for n in names
                if n.endswith(
                    (".py", ".json", ".jsonl", ".css", ".js", ".cpp", ".h", ".hpp", ".in", "CMakeLists.txt", "py.typed")
                )
            }
    assert wanted <= held, wanted - held
    assert "dsv2_compile/runtime/cpp/src/abi.h" in held and not any("/cpp/tests/" in n for n in held)
    assert {f"dsv2_compile/{n}/__init__.py" for n in LINKED} <= held


def test_an_unpacked_wheel_works_away_from_the_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path)
    code = (
        "import dsv2_compile, dsv2_compile.passes.pipeline as p, dsv2_compile.kernels.ops\n"
        "from dsv2_compile.autotune.base import SHIPPED\n"
        f"print(dsv2_compile.__file__, p.__file__, (SHIPPED / {PLANTED!r}).resolve(strict=True))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert all(f.startswith(str(tmp_path)) for f in out.stdout.split()), out.stdout


def test_the_example_serves_an_engine_from_an_unpacked_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path / "wheel")
    toy_engine.build(tmp_path / "engine")
    prompts = ["Once upon a time", "Hello", "two words"]
    with Engine.load(tmp_path / "engine", threads=1) as engine:
        made = [c.text for c in engine.generate(prompts, max_new_tokens=64).completions()]
    out = subprocess.run(
        [sys.executable, ROOT / "examples" / "generate.py", "engine"],
        input="\n\n".join(prompts).encode(), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "wheel")},
        check=True, capture_output=True,
    )  # fmt: skip
    assert out.stdout.decode() == "".join(f"{p}{text}\n" for p, text in zip(prompts, made, strict=True))
