"""`build` as a whole: the same bytes again, the three MLA forms, the portable graph, what is refused and told."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv2_compile import estimate as estimates
from dsv2_compile.backends.onnxruntime import Lowered, lower
from dsv2_compile.checkpoint.synth import SynthRequest, synth
from dsv2_compile.cli.main import main
from dsv2_compile.engine import integrity
from dsv2_compile.errors import ModelError, ResourceError, UsageError
from dsv2_compile.pipeline import build, plan
from dsv2_compile.pipeline.core import UNCHANGED
from dsv2_compile.request import BuildRequest
from dsv2_compile.runtime import Engine

SMALL = {"num_hidden_layers": 2, "max_position_embeddings": 1024}
FORMS = ("expanded", "absorbed", "merged")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("synth") / "checkpoint"
    synth(SynthRequest(path, "tiny", SMALL))
    return path


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory):
    return build(BuildRequest(str(checkpoint), tmp_path_factory.mktemp("build") / "engine")).engine


def contents(engine: Path) -> dict[str, bytes]:
    return {p.relative_to(engine).as_posix(): p.read_bytes() for p in sorted(engine.rglob("*")) if p.is_file()}


def logits(engine: Path) -> np.ndarray:
    with Engine.load(engine) as loaded, loaded.session(2, 64) as session:
        first = session.prefill([[5, 6, 7, 8], [9, 10, 0, 0]], [4, 2])
        return np.stack([first, session.decode([11, 12])])


def test_the_same_build_gives_the_same_bytes(checkpoint, engine, tmp_path):
    again = build(BuildRequest(str(checkpoint), tmp_path / "another-name")).engine
    a, b = contents(engine), contents(again)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
    assert len(a) > 8


@pytest.mark.parametrize("form", FORMS)
def test_every_mla_form_is_the_same_model(checkpoint, engine, tmp_path, form):
    report = build(BuildRequest(str(checkpoint), tmp_path / form, mla_form={"prefill": form, "decode": form}))
    assert report.verification is not None and report.verification.passed
    assert {p.mla_form for p in report.manifest.programs.values()} == {form}
    assert logits(report.engine) == pytest.approx(logits(engine), abs=2e-4)


def test_the_portable_graph_has_no_contrib_operator(checkpoint, engine, tmp_path):
    report = build(BuildRequest(str(checkpoint), tmp_path / "portable", portable=True))
    assert report.verification is not None and report.verification.passed
    for phase in ("prefill", "decode"):
        path = report.engine / f"{phase}.onnx"
        model = onnx.load(path, load_external_data=False)
        assert {o.domain for o in model.opset_import} == {""}
        assert {n.domain for n in model.graph.node} == {""}
        onnx.checker.check_model(str(path))
        assert "com.microsoft" in {
            o.domain for o in onnx.load(engine / f"{phase}.onnx", load_external_data=False).opset_import
        }
    assert logits(report.engine) == pytest.approx(logits(engine), abs=2e-4)


def test_an_unknown_form_is_refused_before_the_checkpoint_is_read(tmp_path):
    with pytest.raises(UsageError, match="no MLA form"):
        build(BuildRequest(str(tmp_path / "nothing"), tmp_path / "out", mla_form={"decode": "folded"}))


def test_too_little_memory_is_refused_with_the_need(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "available_memory", lambda: 64 << 20)
    with pytest.raises(ResourceError, match=r"needs about .* GB of memory, 0\.1 GB are free"):
        build(BuildRequest(str(checkpoint), tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_dry_run_knows_the_bytes_on_disk(checkpoint, engine):
    needs = plan(BuildRequest(str(checkpoint), Path("unused"))).estimate
    held = sum(len(data) for data in contents(engine).values())
    assert math.isclose(needs.disk_bytes, held, rel_tol=0.2), (needs.disk_bytes, held)
    weights = sum(e.bytes for p, e in integrity.read_manifest(engine).files.items() if p.endswith("00001.safetensors"))
    assert math.isclose(needs.weights_bytes, weights, rel_tol=0.01)


def damaged(checkpoint: Path, out: Path) -> Path:
    """A copy with two NaN and one infinity in an expert that no golden token is bound to choose."""
    out.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            name = next(n for n in tensors if "experts.3.down" in n)
            tensors[name][0, :2], tensors[name][1, 0] = torch.nan, torch.inf
            save_file(tensors, out / path.name, {"format": "pt"})
        else:
            (out / path.name).write_bytes(path.read_bytes())
    return out


def test_nan_weights_are_counted_and_strict_refuses_them(checkpoint, tmp_path):
    bad = damaged(checkpoint, tmp_path / "bad")
    request = BuildRequest(str(bad), tmp_path / "out", no_verify=True)
    (warning,) = (w for w in build(request).warnings if "NaN" in w)
    assert "experts.3.down" in warning and "2 NaN and 1 infinite" in warning
    with pytest.raises(ModelError, match=r"experts\.3\.down"):
        build(replace(request, output=tmp_path / "strict", strict=True))


def test_a_model_of_more_than_two_gigabytes_needs_no_large_protobuf(engine):
    """Weights are external whatever their size: the limit of protobuf is out of reach."""
    for phase in ("prefill", "decode"):
        model = onnx.load(engine / f"{phase}.onnx", load_external_data=False)
        inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        assert sum(len(t.raw_data) for t in inside) < 4096
        assert len(model.graph.initializer) > len(inside)


def off_by_a_scale(lowered: Lowered) -> Lowered:
    """The program with attention scores a hundredth too large."""
    scaled = [a for n in lowered.model.graph.node for a in n.attribute if a.name == "alpha" and a.f != 1.0]
    assert scaled
    for attribute in scaled:
        attribute.f *= 1.01
    return lowered


@pytest.fixture
def wrong_backend(monkeypatch, tmp_path):
    monkeypatch.setenv("DSV2_CACHE_DIR", str(tmp_path / "cache"))  # where no earlier build is known
    monkeypatch.setattr("dsv2_compile.pipeline.onnxruntime.lower", lambda *args: off_by_a_scale(lower(*args)))


def test_an_engine_that_computes_something_else_is_kept_apart_and_ends_with_4(
    checkpoint, engine, tmp_path, capsys, wrong_backend
):
    """Twice: what an earlier rejected build left is replaced. The engine already there stays as it was."""
    out = tmp_path / "engine"
    shutil.copytree(engine, out)
    before = contents(out)
    for _ in range(2):
        assert main(["build", str(checkpoint), "--cpu", "-o", str(out), "--force"]) == 4
    assert "does not compute what the eager model computes" in capsys.readouterr().err
    assert contents(out) == before
    rejected = integrity.read_manifest(tmp_path / "engine.unverified")
    assert rejected.status == "unverified"
    assert rejected.numerics["passed"] is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "engine", "engine.unverified"]


def test_an_unchanged_build_is_not_done_again(checkpoint, tmp_path, monkeypatch):
    """Known by its inputs; a changed request, file or engine is built anew."""
    monkeypatch.setenv("DSV2_CACHE_DIR", str(tmp_path / "cache"))
    source, out = tmp_path / "checkpoint", tmp_path / "engine"
    shutil.copytree(checkpoint, source)
    request = BuildRequest(str(source), out, no_verify=True, force=True)
    first = build(request)
    again = build(request)
    assert UNCHANGED in again.warnings and again.manifest == first.manifest and UNCHANGED not in first.warnings
    assert UNCHANGED not in build(replace(request, max_batch_size=2)).warnings
    assert UNCHANGED not in build(request).warnings, "another engine lay there"
    (out / "config.json").write_text("{}")
    assert UNCHANGED not in build(request).warnings, "the engine was damaged"
    (source / "config.json").touch()
    assert UNCHANGED not in build(request).warnings, "the checkpoint may have changed"
