"""`dsv2-compile tune` as it is typed: what it says, its exit codes, its one object, and that it goes on."""

from __future__ import annotations

import json

import pytest

from dsv2_compile.autotune import base
from dsv2_compile.autotune.executors import EXECUTORS
from dsv2_compile.autotune.measure import opening
from dsv2_compile.autotune.record import PREDICTED
from dsv2_compile.autotune.sweep import EFFORTS
from dsv2_compile.checkpoint.presets import configure, published_config
from dsv2_compile.cli import tune
from dsv2_compile.cli.main import main
from dsv2_compile.pipeline.cuda import DTYPES
from dsv2_compile.targets import target
from tests.cli_tools import checked

SMALL = {"num_hidden_layers": 2, "vocab_size": 320, "n_routed_experts": 8, "max_position_embeddings": 256}
LIMITS = ["--gpu", "h800", "--max-batch-size", "2", "--predict"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """No more than a config.json."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(published_config(configure("tiny", SMALL), "bfloat16")))
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DSV2_CACHE_DIR", str(folder))
        yield folder


def answer(capsys, *words, code=0):
    assert main([*words, "--json"]) == code
    return checked(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--gpu", "h900"], "h900"),
        (["--gpu", "cpu"], "no GPU"),
        (["--gpu", "h800", "--address", "auto"], "--address has no effect"),
        (["--gpu", "h800", "--budget", "soon"], "is no time"),
        (["--gpu", "h800", "--budget", "0s"], "is no time"),
        (["--gpu", "h800", "--kernel", "nothing"], "no kernel 'nothing'"),
        ([*LIMITS, "--kernel", "argmax"], "no kernel 'argmax' to tune"),
        ([*LIMITS, "--max-seq-len", "257"], "outside what the model was made for"),
    ],
)
def test_what_cannot_be_tuned_is_told(model, words, cause, capsys):
    found = answer(capsys, "tune", model, *words, code=2)
    assert cause in found["error"]["cause"] + found["error"]["remedy"]


def test_the_choices_are_those_there_are():
    """The command lists them before it imports what has them."""
    assert tuple(EFFORTS) == tune.EFFORTS and tuple(EXECUTORS) == tune.EXECUTORS and tune.DTYPES == DTYPES


def test_a_model_that_is_not_there(capsys, tmp_path):
    assert "no directory" in answer(capsys, "tune", str(tmp_path / "none"), *LIMITS, code=2)["error"]["cause"]


def test_records_that_cannot_be_written_are_told_before_a_trial(model, tmp_path, capsys):
    found = answer(capsys, "tune", model, *LIMITS, "--kernel", "rms_norm", "--records", str(tmp_path), code=1)
    assert found["trials"] == {} and found["records"] == []


def test_a_sweep_is_recorded_and_goes_on(model, cache, capsys):
    """One out of time at once, then whole, then again with nothing left to try."""
    words = ["tune", model, *LIMITS, "--kernel", "rms_norm"]
    cut = answer(capsys, *words, "--budget", "0.001s", code=7)
    assert cut["unfinished"] == cut["tasks"] > 0 and "goes on" in cut["error"]["remedy"]
    whole = answer(capsys, *words)
    assert whole["unfinished"] == 0 and whole["trials"]["ok"] > 0
    assert len(whole["records"]) == whole["tasks"] == cut["tasks"]
    found = base.load([base.own_file(target("h800"))])
    assert {r.provenance for r in found.records.values()} == {PREDICTED}
    assert {r.key.kernel for r in found.records.values()} == {"rms_norm"} and len(found.records) == whole["tasks"]
    again = answer(capsys, *words)
    assert again["trials"] == {} and [r["config"] for r in again["records"]] == [r["config"] for r in whole["records"]]


def test_what_a_person_sees(model, capsys):
    assert main(["tune", model, *LIMITS, "--kernel", "rms_norm"]) == 0
    out, err = capsys.readouterr()
    assert "predicted for h800, not measured" in err and "0 trials" in err
    header, *rows = out.strip().splitlines()
    assert header.split()[0] == "kernel" and all(r.startswith("rms_norm") for r in rows)


def test_without_the_gpu_it_says_why_it_predicts(model, capsys, monkeypatch):
    monkeypatch.setattr(opening, "identify", lambda: "there is none")
    words = ["tune", model, "--gpu", "h800", "--max-batch-size", "2", "--kernel", "rms_norm", "--budget", "0.001s"]
    assert "times are predicted: there is none" in answer(capsys, *words, code=7)["warnings"]
