"""`verify_engine` on whole engines: offline without torch, against a checkpoint, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.synth import SynthRequest, synth
from dsv2_compile.engine import integrity
from dsv2_compile.errors import IntegrityError, NumericError, UsageError
from dsv2_compile.pipeline import build
from dsv2_compile.request import BuildRequest
from dsv2_compile.verify import golden as goldens
from dsv2_compile.verify import verify_engine

MODEL = {"num_hidden_layers": 2, "max_position_embeddings": 512}
OFFLINE = """
import sys
from dsv2_compile.verify import Golden, Report, verify_engine
report = verify_engine(sys.argv[1], threads=1)
report.require()
print(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "onnx", "triton", "sympy", "transformers"}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, another of the same shapes, and the engine of the first with and without golden data."""
    folder = tmp_path_factory.mktemp("verify")
    for seed, name in enumerate(("checkpoint", "other")):
        synth(SynthRequest(folder / name, "tiny", MODEL, seed=seed))
    build(BuildRequest(str(folder / "checkpoint"), folder / "engine"))
    build(BuildRequest(str(folder / "checkpoint"), folder / "unchecked", no_verify=True))
    return folder


def test_offline_an_engine_is_checked_without_torch_and_onnx(folder):
    done = subprocess.run([sys.executable, "-c", OFFLINE, folder / "engine"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_check_of_the_build_and_the_one_later_agree(folder):
    report = verify_engine(folder / "engine", threads=1)
    assert report.passed
    assert report.oracle_difference is None
    manifest = integrity.read_manifest(folder / "engine")
    assert manifest.status == "verified"
    assert manifest.numerics["passed"] is True
    assert manifest.numerics.keys() == report.summary().keys()
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["passed"] is True


def test_with_the_checkpoint_the_golden_data_are_computed_afresh(folder):
    report = verify_engine(folder / "engine", Checkpoint.open(folder / "checkpoint"))
    assert report.passed
    assert report.oracle_difference is not None
    assert report.oracle_difference < 1e-13


def test_another_checkpoint_is_told(folder):
    report = verify_engine(folder / "engine", Checkpoint.open(folder / "other"))
    assert [p for p in report.problems if "the golden data are not of this checkpoint" in p] == report.problems
    with pytest.raises(NumericError, match="does not compute what the eager model computes"):
        report.require()


def test_an_engine_without_golden_data_needs_its_checkpoint(folder):
    with pytest.raises(UsageError, match="holds no golden data") as e:
        verify_engine(folder / "unchecked")
    assert "checkpoint" in e.value.remedy
    assert verify_engine(folder / "unchecked", Checkpoint.open(folder / "checkpoint")).passed
    assert not verify_engine(folder / "unchecked", Checkpoint.open(folder / "other")).passed


def spoiled(folder: Path, out: Path, **changes: np.ndarray) -> Path:
    """The golden data of the engine with other arrays, in a folder of their own."""
    (out / "golden").mkdir()
    arrays = load_file(folder / "engine" / goldens.DATA) | changes
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, out / goldens.DATA)
    (out / goldens.INFO).write_text((folder / "engine" / goldens.INFO).read_text())
    return out


def test_golden_data_that_do_not_fit_are_refused_with_every_misfit(folder, tmp_path):
    config = integrity.read_manifest(folder / "engine").model
    arrays = load_file(folder / "engine" / goldens.DATA)
    bad = spoiled(
        folder,
        tmp_path,
        tokens=arrays["tokens"] + config.vocab_size,
        clean=arrays["clean"][1:],
        **{"oracle.rows": arrays["oracle.rows"][:, :-1], "e0.logits": arrays["e0.logits"][:2]},
    )
    with pytest.raises(IntegrityError) as e:
        goldens.read(bad, config)
    names = ["a token is outside", "oracle.rows is", "e0.logits is", "clean is"]
    assert [n for n in names if any(p.startswith(n) for p in e.value.problems)] == names


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 99),
        ("dtype", None),
        ("spread", {}),
        ("spread", {"rel_l2_p95": "x"}),
        ("routing", {"choices": 1}),
        ("dtype", "int8"),
    ],
)
def test_a_golden_header_that_does_not_fit_is_refused(folder, tmp_path, key, value):
    config = integrity.read_manifest(folder / "engine").model
    bad = spoiled(folder, tmp_path)
    info = json.loads((bad / goldens.INFO).read_text())
    (bad / goldens.INFO).write_text(json.dumps({k: v for k, v in (info | {key: value}).items() if v is not None}))
    with pytest.raises(IntegrityError, match="golden"):
        goldens.read(bad, config)


def test_a_changed_bit_of_the_golden_data_is_found_before_they_are_read(folder, tmp_path):
    import shutil

    copy = tmp_path / "engine"
    shutil.copytree(folder / "engine", copy)
    data = bytearray((copy / goldens.DATA).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / goldens.DATA).write_bytes(data)
    with pytest.raises(IntegrityError, match="not the engine that was built"):
        verify_engine(copy)
