"""Loading: what the runtime refuses to run, what it never imports, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import helper

import dsv2_compile
from dsv2_compile.engine.manifest import ProgramEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.errors import IncompatibleError, UsageError
from dsv2_compile.runtime import Engine, ort
from tests import toy_engine

PACKAGE = Path(dsv2_compile.__file__).parent


def _programs(**changes):
    base = toy_engine.manifest().programs
    return {k: ProgramEntry(**{**vars(v), **changes}) for k, v in base.items()}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"backend": "cuda", "target": "h800"}, "cuda-core|NVIDIA driver|no GPU|built for"),
        ({"backend": "tensorrt"}, "backend tensorrt"),
        ({"toolchain": {"onnxruntime": "99.0.1"}}, "needs onnxruntime 99.0.1 or later, found"),
        ({"toolchain": {"onnxruntime": "newest"}}, "needs onnxruntime"),
        ({"toolchain": {"torch": "2.0"}}, "not stated"),
        ({"programs": {"decode": toy_engine.manifest().programs["decode"]}}, "no program"),
        ({"programs": _programs(session_options={"session.load_model_format": "ORT"})}, "does not allow"),
    ],
    ids=["cuda", "tensorrt", "newer", "no version", "no ort", "no prefill", "option"],
)
def test_what_cannot_run_here_is_refused_at_once(tmp_path, monkeypatch, changes, text):
    toy_engine.build(tmp_path / "e", **changes)
    monkeypatch.setattr("dsv2_compile.engine.integrity.verify", lambda *a: pytest.fail("read the files first"))
    start = time.perf_counter()
    with pytest.raises(IncompatibleError, match=text) as e:
        Engine.load(tmp_path / "e")
    assert time.perf_counter() - start < 1
    assert e.value.exit_code == 5
    assert e.value.remedy


@pytest.mark.parametrize("built", ["1.0.0", "1.1", "0.9"])
def test_an_engine_built_with_an_older_onnxruntime_loads(tmp_path, built):
    toy_engine.build(tmp_path / "e", toolchain={"onnxruntime": built})
    with Engine.load(tmp_path / "e", threads=1) as engine:
        assert engine.manifest.toolchain["onnxruntime"] == built


def test_options_of_the_manifest_reach_onnxruntime(tmp_path):
    toy_engine.build(tmp_path / "e", programs=_programs(session_options=dict.fromkeys(ort.OPTIONS, "1")))
    with Engine.load(tmp_path / "e", threads=1) as engine:
        options = engine.program("decode")._session.get_session_options()
        assert {name: options.get_session_config_entry(name) for name in ort.OPTIONS} == dict.fromkeys(ort.OPTIONS, "1")


def _engine_with(out: Path, prefill: bytes) -> None:
    with EngineWriter(out) as w:
        for name in ("prefill.onnx", "decode.onnx"):
            w.add_bytes(name, prefill)
        w.finish(toy_engine.manifest())


def test_a_program_that_is_no_onnx_model_is_incompatible(tmp_path):
    _engine_with(tmp_path / "e", b"not a model")
    with pytest.raises(IncompatibleError, match=r"could not load decode\.onnx"):
        Engine.load(tmp_path / "e", threads=1)


def test_a_program_with_another_signature_is_incompatible(tmp_path):
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["logits"])], "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    _engine_with(tmp_path / "e", model.SerializeToString())
    with pytest.raises(IncompatibleError, match="inputs and outputs") as e:
        Engine.load(tmp_path / "e", threads=1)
    assert {"x", "tokens", "past", "rows", "cache.0"} <= set(e.value.problems)


def test_an_unverified_engine_loads_with_a_warning(tmp_path):
    toy_engine.build(tmp_path / "e", status="unverified")
    with pytest.warns(UserWarning, match="unverified"):
        Engine.load(tmp_path / "e", threads=1).close()


def test_thread_counts(tmp_path):
    toy_engine.build(tmp_path / "e")
    with pytest.raises(UsageError, match="threads"):
        Engine.load(tmp_path / "e", threads=0)


# The line between compiler and runtime


def test_running_an_engine_imports_no_compiler(tmp_path):
    toy_engine.build(tmp_path / "e")
    code = (
        "import sys\n"
        "from dsv2_compile.runtime import Engine\n"
        "with Engine.load(sys.argv[1], threads=1) as e:\n"
        "    assert e.generate('ab', max_new_tokens=3).completions()\n"
        "print(sorted(m for m in ('torch', 'triton', 'onnx', 'sympy', 'transformers') if m in sys.modules))\n"
        "print(sorted(m for m in sys.modules if m.startswith('dsv2_compile.')))"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "e"], capture_output=True, text=True, check=True)
    heavy, ours = map(ast.literal_eval, run.stdout.splitlines())
    assert heavy == []
    allowed = ("dsv2_compile.runtime", "dsv2_compile.engine", "dsv2_compile.errors", "dsv2_compile.config")
    assert [m for m in ours if not m.startswith(allowed)] == []


BUILD_SIDE = {"writer.py", "shards.py"}


@pytest.mark.parametrize(
    "path",
    [p for d in ("runtime", "engine") for p in sorted((PACKAGE / d).glob("*.py")) if p.name not in BUILD_SIDE],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_no_file_of_the_runtime_names_the_compiler(path):
    """Also inside functions, where sys.modules would not tell."""
    allowed = {"numpy", "onnxruntime", "tokenizers", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            ours = name.startswith(tuple(f"dsv2_compile.{p}" for p in ("runtime", "engine", "errors", "config")))
            build = name.removeprefix("dsv2_compile.engine.") in {"writer", "shards"}
            assert (ours and not build) or name.split(".")[0] in allowed or name == "dsv2_compile.engine", name
