"""`build --gpu` as a whole, on a machine with no GPU: what it writes, proves, refuses and says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dsv2_compile.backends.cuda.pool import Pool
from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.checkpoint.synth import SynthRequest, synth
from dsv2_compile.cli.main import main
from dsv2_compile.engine import integrity
from dsv2_compile.errors import IncompatibleError
from dsv2_compile.pipeline import build, cuda, plan
from dsv2_compile.pipeline.cuda_proof import ON_HOST, ON_TWIN, prove
from dsv2_compile.plan import text
from dsv2_compile.plan.plan import FILE
from dsv2_compile.progress import silent
from dsv2_compile.request import BuildRequest
from dsv2_compile.runtime import Engine
from tests.cli_tools import checked

SMALL = {
    "num_hidden_layers": 2, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "n_routed_experts": 8, "max_position_embeddings": 256, "q_lora_rank": 48, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory):
    """One for the module, so that a kernel is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSV2_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("synth") / "checkpoint"
    synth(SynthRequest(path, "tiny", SMALL))
    return path


def request(checkpoint: Path, out: Path, **changes) -> BuildRequest:
    return replace(BuildRequest(str(checkpoint), out, backend="cuda", gpu="h800", max_batch_size=3), **changes)


@pytest.fixture(scope="module")
def report(checkpoint, tmp_path_factory):
    return build(request(checkpoint, tmp_path_factory.mktemp("build") / "engine"))


def contents(engine: Path) -> dict[str, bytes]:
    return {p.relative_to(engine).as_posix(): p.read_bytes() for p in sorted(engine.rglob("*")) if p.is_file()}


def test_a_small_engine_is_verified_by_its_own_plan(report):
    m = report.manifest
    assert (m.status, m.backend, m.target, m.dtype) == ("verified", "cuda", "h800", "bfloat16")
    assert m.numerics["passed"] and m.numerics["executed"] == ON_HOST and m.numerics["of_engine"]
    assert {s.phase for s in report.verification.sections} == {"prefill", "decode"}
    steps = report.verification.levels
    assert min(level.rows for level in steps) > 0


def test_what_an_engine_holds(report):
    held = contents(report.engine)
    found = text.parse(held[FILE])
    assert {p.phase for p in found.programs.values()} == {"prefill", "extend", "decode"}
    assert {k.cubin for k in found.kernels} == {name for name in held if name.startswith("kernels/")}
    assert {w.dtype for w in report.manifest.weights.values()} == {"bfloat16", "float32"}
    assert not [name for name, data in held.items() if str(Path(__file__).parents[2]).encode() in data]
    launches = json.loads(held["launches.json"])
    for name, program in found.programs.items():
        rows = launches["programs"][name]["launches"]
        assert [r["what"] for r in rows] == [x.what for x in program.launches]
        assert all(r["bytes"] > 0 and r["seconds"] > 0 for r in rows)


def test_inspect_shows_launches_with_their_bounds(report, capsys):
    assert main(["inspect", str(report.engine), "--launches", "--program", "decode-1"]) == 0
    shown = capsys.readouterr().out
    assert "attention over pages, layer 1" in shown and "bound on h800" in shown and "mla_decode" in shown
    assert main(["inspect", str(report.engine), "--launches", "--json"]) == 0
    found = checked(capsys.readouterr().out)
    assert set(found["launches"]) == set(report.manifest.programs) and all(k["stack"] == 0 for k in found["kernels"])
    assert main(["inspect", str(report.engine), "--json"]) == 0
    programs = checked(capsys.readouterr().out)["programs"]
    assert all(p["bytes"] > 0 and p["sizes"] for p in programs.values())


def test_the_same_build_gives_the_same_bytes_and_compiles_nothing(report, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Pool, "run", lambda self, jobs: (pytest.fail(f"compiles {job.function}") for job in jobs))
    again = build(request(checkpoint, tmp_path / "again"))
    a, b = contents(report.engine), contents(again.engine)
    assert a.keys() == b.keys() and [name for name in a if a[name] != b[name]] == []


def test_offline_and_from_the_checkpoint(report, checkpoint, capsys):
    assert main(["verify", str(report.engine), "--checkpoint", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["report"]
    assert found["passed"] and found["executed"] == ON_HOST and found["oracle_difference"] is not None


def test_a_damaged_cubin_is_found_before_anything_is_read(report, tmp_path):
    shutil.copytree(report.engine, tmp_path / "e")
    cubin = next((tmp_path / "e" / "kernels").iterdir())
    data = bytearray(cubin.read_bytes())
    data[100] ^= 1
    cubin.write_bytes(data)
    assert main(["verify", str(tmp_path / "e")]) == 8


def test_without_a_gpu_it_is_not_run(report, capsys):
    with pytest.raises(IncompatibleError, match=r"cuda-core|NVIDIA driver|no GPU"):
        Engine.load(report.engine)
    assert main(["run", str(report.engine), "text"]) == 5
    assert capsys.readouterr().err.count("\n") >= 2


def test_plan_and_kernels_alone_are_proven_on_the_twin(checkpoint, tmp_path):
    made = build(request(checkpoint, tmp_path / "e", no_weights=True))
    assert made.manifest.status == "unverified" and made.manifest.weights == {}
    assert made.manifest.numerics["passed"] and made.manifest.numerics["executed"] == ON_TWIN
    with pytest.raises(IncompatibleError, match="plan and kernels only"):
        prove(made.engine, None, silent)
    with pytest.raises(IncompatibleError, match="no-weights"):
        Engine.load(made.engine)


@pytest.mark.slow
def test_a_planted_fault_of_the_lowering_is_caught(checkpoint, tmp_path, monkeypatch):
    """Scores a hundredth too large in every program: the engine is kept apart, exit code 4."""
    from dsv2_compile.pipeline import cuda_plan

    lower = cuda_plan.lower

    def wrong(program, *rest):
        for node in program.nodes():
            if "mla_" in str(node.target):
                at = next(i for i, a in enumerate(node.args) if isinstance(a, float))
                node.args = (*node.args[:at], node.args[at] * 1.1, *node.args[at + 1 :])
        return lower(program, *rest)

    monkeypatch.setattr(cuda_plan, "lower", wrong)
    command = ["build", str(checkpoint), "--gpu", "h800", "-o", str(tmp_path / "e"), "--max-batch-size", "3"]
    assert main(command) == 4
    assert integrity.read_manifest(tmp_path / "e.unverified").status == "unverified"
    assert not (tmp_path / "e").exists()


REFUSED = {
    "unknown GPU": (["--gpu", "h900"], 2, "did you mean"),
    "no such dtype": (["--gpu", "h800", "--dtype", "int3"], 2, "does not compute in"),
    "portable": (["--gpu", "h800", "--portable"], 2, "no effect"),
    "no-weights for a CPU": (["--cpu", "--no-weights"], 2, "no effect"),
    "expanded decode": (["--gpu", "h800", "--mla-form", "decode=expanded"], 2, "decode may be absorbed or merged"),
    "absorbed prefill": (["--gpu", "h800", "--mla-form", "prefill=absorbed"], 2, "prefill may be expanded"),
    "more positions than the model has": (["--gpu", "h800", "--max-seq-len", "999999"], 2, "outside"),
    "a batch of none": (["--gpu", "h800", "--max-batch-size", "0"], 2, ""),
    "too large a batch": (["--gpu", "h800", "--max-batch-size", "5000"], 2, "1 to 1024"),
    "CPU backend for a GPU": (["--gpu", "h800", "--backend", "onnxruntime"], 2, "is for CPUs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_refused(name, checkpoint, tmp_path, capsys):
    words, code, said = REFUSED[name]
    assert main(["build", str(checkpoint), "-o", str(tmp_path / "e"), *words]) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_says_how_much_and_what_would(monkeypatch):
    """V2 itself, as far as the check of its size."""
    config = PRESETS["v2"]
    gpu = cuda.target("h800")
    recipes = {"w": cuda_recipe(config)}
    with pytest.raises(cuda.ResourceError, match=r"472\.\d GB of weights .* h800 has 80 GB") as e:
        cuda._require_room(config, gpu, recipes, "bfloat16", 4096)
    assert "no single GPU" in e.value.remedy and e.value.exit_code == 6


def cuda_recipe(config):
    """Of as many elements as the published model has parameters."""
    from dsv2_compile.weights import Source

    return Source("w", (236, 10**9))


def test_dry_run_tells_and_writes_nothing(checkpoint, tmp_path):
    needs = plan(request(checkpoint, tmp_path / "e")).estimate
    assert needs.weights_bytes > 0 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["a100", "l40s", "rtx5090", "b200"])
def test_other_gpus_have_plans_too(checkpoint, tmp_path, gpu):
    made = build(request(checkpoint, tmp_path / "e", gpu=gpu, no_verify=True, no_weights=True))
    found = text.parse((made.engine / FILE).read_bytes())
    assert found.capability == cuda.target(gpu).capability and made.warnings == ()


@pytest.mark.slow
def test_float16_engines(checkpoint, tmp_path):
    made = build(request(checkpoint, tmp_path / "e", dtype="float16"))
    assert made.manifest.status == "verified" and made.manifest.dtype == "float16"
