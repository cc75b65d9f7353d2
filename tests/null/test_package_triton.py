"""Model repositories for Triton Inference Server, as far as they can be checked without one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format

from dsv2_compile.package.pbtxt import STREAM_INPUTS
from dsv2_compile.runtime import Engine, Sampling
from tests import toy_engine, triton_server
from tests.cli_tools import cli, ended, start, told, wait_for
from tests.triton_server import Request, TritonError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "toy"
    toy_engine.build(out)
    return out


@pytest.fixture(scope="module", params=["copied", "linked"])
def repository(request, toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("repo") / "models"
    link = ["--link"] if request.param == "linked" else []
    answer = cli("package", toy, "--triton-repo", out, *link, "--json").answer()
    assert answer["models"] == ["toy", "toy-prefill", "toy-decode"]
    assert (answer["bytes"] == 0) == bool(link)
    assert (out / "toy/1/engine").is_symlink() == bool(link)
    assert [p.name for p in out.parent.iterdir()] == ["models"]
    return out


def read(repository, name):
    return triton_server.config((repository / name / "config.pbtxt").read_text())


def test_the_check_of_configurations_can_fail(repository):
    text = (repository / "toy/config.pbtxt").read_text()
    for old, new in (("decoupled", "decopled"), ("TYPE_INT64", "TYPE_INT65"), ("dims: 1", "dims: x"), ("}", "")):
        with pytest.raises(text_format.ParseError):
            triton_server.config(text.replace(old, new, 1))


def test_every_model_is_in_a_folder_of_its_name(repository):
    assert {p.name for p in repository.iterdir() if p.is_dir()} == {"toy", "toy-prefill", "toy-decode"}
    for folder in filter(os.path.isdir, repository.iterdir()):
        found = read(repository, folder.name)
        assert found.name == folder.name
        assert found.max_batch_size == 0
        assert (folder / "1" / (found.default_model_filename or "model.py")).is_file()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_programs_have_the_inputs_and_outputs_that_are_told(repository, phase):
    found = read(repository, f"toy-{phase}")
    assert found.backend == "onnxruntime"
    session = onnxruntime.InferenceSession(repository / found.name / "1" / found.default_model_filename)
    types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}

    def told_of(tensors):
        return {t.name: (triton_server.TYPES[t.data_type], [*t.dims]) for t in tensors}

    def of_onnx(arguments):
        return {a.name: (types[a.type], [d if isinstance(d, int) else -1 for d in a.shape]) for a in arguments}

    assert told_of(found.input) == of_onnx(session.get_inputs())
    assert told_of(found.output) == of_onnx(session.get_outputs())


@pytest.fixture(scope="module")
def model(repository):
    """model.py as Triton would run it, on the stand-in."""
    found = read(repository, "toy")
    assert found.backend == "python"
    assert found.model_transaction_policy.decoupled
    sys.modules["triton_python_backend_utils"] = triton_server.pb_utils()
    spec = importlib.util.spec_from_file_location("model", repository / "toy/1/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = json_format.MessageToDict(found, preserving_proto_field_name=True)
    config["parameters"]["threads"]["string_value"] = "1"
    model.initialize({"model_config": json.dumps(config)})
    yield model
    model.finalize()
    del sys.modules["triton_python_backend_utils"]


def inputs(**values):
    """As the configuration declares them."""
    numpy_of = {"TYPE_STRING": np.object_, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_, "TYPE_INT32": np.int32}
    numpy_of |= {"TYPE_FP32": np.float32, "TYPE_UINT64": np.uint64}
    return Request(**{n: np.array(v, numpy_of[STREAM_INPUTS[n][0]]).reshape(-1) for n, v in values.items()})


def asked(model, **values):
    request = inputs(**values)
    model.execute([request])
    return request.sender


@pytest.fixture(scope="module")
def engine(toy):
    with Engine.load(toy, threads=1) as engine:
        yield engine


def test_a_stream_is_what_the_runtime_gives(model, engine):
    wanted = [*engine.generate("hello", 20)]
    found = asked(model, text_input=b"hello", max_tokens=20, stream=True).all()
    assert [r.value("output_ids") for r in found] == [[t.id] for t in wanted]
    assert [r.value("text_output")[0].decode() for r in found] == [t.text for t in wanted]
    assert [r.value("finish_reason")[0].decode() for r in found] == [""] * 19 + ["length"]


def test_one_answer_in_all(model, engine):
    sampling = Sampling(0.5, 40, np.float32(0.9).item(), 7)
    (wanted,) = engine.generate([[1, 2, 3]], 20, sampling).completions()
    (found,) = asked(model, input_ids=[1, 2, 3], max_tokens=20, temperature=0.5, top_k=40, top_p=0.9, seed=7).all()
    assert tuple(found.value("output_ids")) == wanted.tokens
    assert found.value("text_output") == [wanted.text.encode()]
    first = wanted.tokens[0]
    (stopped,) = asked(
        model, input_ids=[1, 2, 3], temperature=0.5, top_k=40, top_p=0.9, seed=7, stop_token_ids=[first]
    ).all()
    assert (stopped.value("output_ids"), stopped.value("finish_reason")) == ([first], [b"stop"])


def test_requests_run_together_and_one_that_fails_fails_alone(model, engine):
    prompts = [[1, 2], [toy_engine.NAN], [3]]
    many = [inputs(input_ids=p, max_tokens=9) for p in prompts]
    model.execute(many)
    (a,), (bad,), (b,) = (r.sender.all() for r in many)
    assert bad.error.code == TritonError.INTERNAL
    alone = [c.tokens for c in engine.generate([prompts[0], prompts[2]], 9).completions()]
    assert [tuple(r.value("output_ids")) for r in (a, b)] == alone


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"text_input": b"a", "input_ids": [1]},
        {"text_input": b"\xff"},
        {"input_ids": [260]},
        {"input_ids": []},
        {"text_input": b"a", "max_tokens": 0},
        {"text_input": b"a", "temperature": -1.0},
        {"text_input": b"a", "stream": [True, False]},
    ],
    ids=str,
)
def test_wrong_requests_are_errors_of_the_caller(model, values):
    (found,) = asked(model, **values).all()
    assert found.error.code == TritonError.INVALID_ARG


def test_a_request_that_its_client_cancels_leaves_the_batch(model):
    sender = asked(model, text_input=b"a", max_tokens=2000, stream=True)
    sender.sent.get(timeout=30)
    sender.cancelled = True
    assert len(sender.all()) < 1900
    model._scheduler.drain()
    assert model._scheduler.stats.live == 0


def test_what_is_there_is_replaced_only_if_it_is_ours_and_asked_for(toy, tmp_path):
    out = tmp_path / "models"
    assert cli("package", toy, "--triton-repo", out).out == f"{out}\n"
    assert "exists" in told(cli("package", toy, "--triton-repo", out), 2)
    again = cli("package", toy, "--triton-repo", out, "--force", "--name", "other", "--link")
    assert again.code == 0, again.err
    assert {p.name for p in out.iterdir()} == {"other", "other-prefill", "other-decode", "README.md"}
    (out / "mine").mkdir()
    assert "holds more" in told(cli("package", toy, "--triton-repo", out, "--force"), 2)
    assert (toy / "manifest.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("place", ["", "weights/models", ".."])
def test_the_engine_is_never_written_into(toy, place):
    told(cli("package", toy, "--triton-repo", toy / place, "--force"), 2)
    Engine.load(toy, threads=1).close()


def test_names_that_cannot_be(toy, tmp_path):
    assert "no name for a model" in told(cli("package", toy, "--triton-repo", tmp_path / "r", "--name", "a b"), 2)


def test_a_damaged_engine_leaves_nothing(tmp_path):
    toy_engine.build(tmp_path / "toy")
    (tmp_path / "toy/decode.onnx").write_bytes(b"x")
    assert "not the engine that was built" in told(cli("package", tmp_path / "toy", "--triton-repo", tmp_path / "r"), 8)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_an_engine_for_gpus_is_refused(tmp_path):
    toy_engine.build(tmp_path / "toy", backend="cuda", target="h800")
    assert "engine for GPUs" in told(cli("package", tmp_path / "toy", "--triton-repo", tmp_path / "r"), 5)


SLOW_TO_LOAD = """
import time, dsv2_compile.package.triton as t
t.Engine.load = lambda path: (print("staged", file=sys.stderr, flush=True), time.sleep(60))
"""


def test_a_stop_on_the_way_leaves_what_was_there(toy, tmp_path):
    out = tmp_path / "models"
    cli("package", toy, "--triton-repo", out)
    before = sorted(p.relative_to(out) for p in out.rglob("*"))
    process = start("package", toy, "--triton-repo", out, "--force", "--name", "new", setup=SLOW_TO_LOAD)
    wait_for(process, b"staged")
    process.send_signal(signal.SIGTERM)
    told(ended(process), 143)
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["models"]
