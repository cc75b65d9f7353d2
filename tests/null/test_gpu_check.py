"""The GPU check, dry on the host: what it reports, what it finds, what a fault costs. That it runs on a GPU, and
every figure of one, is not shown here."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsv2_compile.devices import device, guarded
from dsv2_compile.gpu_check import decode, isolated, kernels, machine, roofline, scale
from dsv2_compile.gpu_check import engines as gpu_engines
from dsv2_compile.gpu_check.__main__ import main
from dsv2_compile.gpu_check.options import Options
from dsv2_compile.gpu_check.run import check, verdict
from dsv2_compile.gpu_check.table import text
from dsv2_compile.kernels.gpu.check import Violation
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.plan import text as plans
from dsv2_compile.plan.plan import FILE
from dsv2_compile.targets import GPUS, target
from tests import gpu_check_plants

BUDGET = 900.0  # far above what it takes: a busy machine must not turn up here


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Right, wrong, without weights."""
    return gpu_check_plants.engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def spoiled(engines, tmp_path_factory):
    """The report of planted kernels and of a wrong engine, read back from its file."""
    out = tmp_path_factory.mktemp("spoiled")
    options = Options(host=True, cases="tests.gpu_check_plants", engines=(str(engines[1]),))
    check(options, out, ["a", "b", "c"], BUDGET, lambda line: None)
    return json.loads((out / "gpu_check.json").read_text())


def test_kernels_that_are_wrong_are_told_from_those_that_fail(spoiled):
    rows = {r["kernel"]: r for r in spoiled["parts"]["a"]["rows"]}
    found = {name: r["status"] for name, r in rows.items()}
    assert found == {
        "right": "ok",
        "wrong": "wrong",
        "outside": "wrong",
        "ends": "error",
        "raises": "error",
        "right again": "ok",
    }
    assert "l2" in rows["wrong"]["reason"] and "mistakes" in rows["wrong"]["reason"]
    assert "behind out were written, the first 0 past its end" in rows["outside"]["reason"]
    assert rows["ends"]["reason"] == "the process ended with status 7"
    assert rows["raises"]["reason"] == "ValueError: no such input"
    assert 0 < rows["right"]["l2"] <= rows["right"]["limit"]


def test_an_engine_that_is_wrong_is_found(spoiled):
    rows = {r["what"]: r for r in spoiled["parts"]["b"]["rows"]}
    assert rows["against eager"]["status"] == "wrong" and "layer 0" in rows["against eager"]["reason"]
    assert rows["same bits"]["status"] == "ok"
    assert spoiled["exit"] == 4 and "failed" in spoiled["verdict"]


def test_times_of_kernels(spoiled):
    rows = spoiled["parts"]["c"]["rows"]
    assert {r["kind"] for r in rows} == {"decode", "experts", "prefill", "linear"}
    for r in rows:
        assert r["status"] == "ok" and 0 < r["l2"] <= r["limit"], r
        assert set(r["ms"]) == {"median", "p10", "p90", "least", "most", "samples"}
        assert r["bytes"] > 0 and r["flops"] > 0 and r["bound"] in ("memory", "compute")
        assert r["torch"]["ms"]["median"] > 0 and r["torch_over_ours"] >= 0, r["torch"]


def test_the_whole_report(spoiled):
    assert spoiled["schema"] == "dsv2/gpu-check/1" and spoiled["host"] is True
    assert spoiled["machine"]["copy_gbps"] > 0 and spoiled["machine"]["matmul_tflops"] > 0
    assert set(spoiled["versions"]) == {"python", *machine.LIBRARIES}
    assert len(spoiled["sources"]) == 64 and spoiled["engines"] == ["wrong"]
    for part in spoiled["parts"].values():
        ids = [r["id"] for r in part["rows"]]
        assert len(set(ids)) == len(ids) and sum(part["counts"].values()) == len(ids) and part["seconds"] > 0
    shown = text(spoiled)
    assert "a dry run: no figure is of a GPU" in shown and "WRONG" in shown and shown.endswith("exit 4)")


def test_a_right_engine_passes_and_a_whole_model_is_timed(engines, tmp_path, capsys):
    right, _, plan = engines
    command = ["--out", str(tmp_path / "out"), "--host", "--parts", "b,d", "--budget", str(BUDGET)]
    assert main([*command, "--engine", str(right), "--engine", str(plan)]) == 0
    report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    eager, same = report["parts"]["b"]["rows"]
    assert "never executed on a GPU" in eager["executed"] and eager["worst"]["rel_l2_p95"] > 0
    steps = [c for c in same["calls"] if c["replayed"]]
    assert len(same["calls"]) == 4 and len(steps) == 2
    assert all(c["graph_as_single"] and c["finite"] and not c["graph_changed"] for c in same["calls"])
    rows = {r["subject"]: r for r in report["parts"]["d"]["rows"]}
    assert set(rows) == {"engine", "eager", "compile"} and not rows["engine"]["peer"]
    assert all(r["status"] == "ok" and r["tokens_per_second"] > 0 for r in rows.values()), rows
    found = rows["engine"]
    assert sum(k["launches"] for k in found["kernels"]) == found["launches"]
    assert found["bound_ms"] > 0 and found["bytes"] > 0
    assert "3 rows passed, 0 skipped" in capsys.readouterr().out


def test_the_costs_of_a_plan_are_those_of_its_build(engines):
    root = engines[0]
    plan = plans.parse((root / FILE).read_bytes())
    report = json.loads((root / "launches.json").read_text())
    for name, program in plan.programs.items():
        expected = report["programs"][name]
        symbols = {**expected["sizes"], "slots": 64}
        found = list(roofline.launch_costs(plan, program, symbols))
        told = [(x["what"], x["bytes"], x["flops"]) for x in expected["launches"]]
        assert [(c.what, c.bytes, c.flops) for c in found] == told


def test_on_a_gpu_an_engine_is_not_proven_by_the_host(engines, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for what in ("against eager", "same bits"):
        with pytest.raises(machine.IncompatibleError):
            gpu_engines.run(Options(), {"engine": str(engines[0]), "what": what})


# processes


def run_part(items, **changes):
    settings = {"deadline": time.monotonic() + 300, "workers": 1, "timeout": 100.0, **changes}
    options = Options(target=settings.pop("target", "h200"))
    return isolated.run("tests.gpu_check_part", options, [{"do": do} for do in items], **settings)


def test_a_fault_costs_its_item_and_its_process():
    rows = run_part(["run", "fault", "run", "end", "run", "raise", "run"])
    assert [r["status"] for r in rows] == ["ok", "error", "ok", "error", "ok", "error", "ok"]
    assert "illegal memory access" in rows[1]["fault"] and "status 7" in rows[3]["reason"]
    assert len({rows[i]["pid"] for i in (0, 2, 4)}) == 3  # but the one that raised goes on
    assert rows[4]["pid"] == rows[6]["pid"] and rows[5]["reason"] == "ValueError: as asked"


def test_what_hangs_is_stopped():
    rows = run_part(["hang", "run"], timeout=1.0)
    assert [r["status"] for r in rows] == ["error", "ok"] and rows[0]["reason"] == "no answer in 1 s"


def test_what_is_not_done_in_time_is_skipped():
    start = time.monotonic()
    rows = run_part(["hang", "run", "run"], deadline=start + 2)
    assert [(r["status"], r["reason"]) for r in rows] == [("skipped", isolated.LATE)] * 3
    assert time.monotonic() - start < 60


def test_a_device_that_cannot_be_opened_is_not_tried_for_ever():
    rows = run_part(["run"] * 6, target="cannot be opened")
    assert [r["status"] for r in rows] == ["error"] * 6
    assert "no such device" in rows[0]["reason"] and rows[5]["reason"] == "the device cannot be opened"


# what is asked for


def test_other_configurations_are_of_the_space():
    found = kernels.items(Options())
    assert len({r["id"] for r in found}) == len(found)
    for r in found:
        case = kernels.cases(Options())[r["kernel"]][r["case"]]
        default = case.kernel.default(case.dims, target("h200"))
        changed = {k for k, v in r["config"].items() if v != default[k]}
        assert bool(changed) == (not r["default"])
        assert all(r["config"][k] in case.kernel.space[k] for k in changed)
    assert {r["kernel"] for r in found} == set(KERNELS)


def test_every_published_shape_is_timed():
    found = list(scale.items(scale.FULL))
    attention = {(r["model"], r["batch"], r["context"]) for r in found if r["kind"] == "decode"}
    assert len(attention) == 2 * 4 * 4 and ("v2", 128, 131072) in attention
    assert {r["rows"] for r in found if r["kind"] == "experts"} == {1, 8, 32, 128, 512, 4096}
    layers = {r["layer"] for r in found if r["kind"] == "linear" and (r["model"], r["rows"]) == ("v2", 1)}
    assert {"queries and latent", "output of attention", "logits", "latent to values", "dense MLP, up"} <= layers
    assert {(r["batch"], r["context"]) for r in found if r["kind"] == "prefill"} == {(1, 4096), (8, 2048)}


def test_profiles_of_gpus_by_the_names_of_their_drivers():
    names = {"h200": "NVIDIA H200", "h100": "NVIDIA H100 80GB HBM3", "a100": "NVIDIA A100-SXM4-80GB"}
    for profile, name in names.items():
        assert machine.target_of(name, GPUS[profile].capability) == profile
    with pytest.raises(machine.IncompatibleError, match="sm_75"):
        machine.target_of("Tesla T4", "sm_75")


def test_random_weights_share_no_bytes(engines, tmp_path):
    plan = plans.parse((engines[0] / FILE).read_bytes())
    placed = decode.random_weights(tmp_path, plan, device.torch.device("cpu"))
    assert len({(w.file, w.offset) for w in placed.values()}) == len(placed)
    assert all(w.consistent and w.offset + w.nbytes <= (tmp_path / w.file).stat().st_size for w in placed.values())


# exit codes

GOOD = {"id": "x", "status": "ok"}
LATE = {"id": "y", "status": "skipped", "reason": isolated.LATE}
CODES = {
    "all right": ([GOOD], 0),
    "no engine given": ([{"id": "y", "status": "skipped", "reason": "no --engine"}], 0),
    "some late": ([GOOD, LATE], 0),
    "all late": ([LATE], 6),
    "a peer fails": ([GOOD, {"id": "z", "status": "error", "peer": True, "reason": ""}], 0),
    "refused": ([GOOD, {"id": "z", "status": "refused", "reason": ""}], 0),
    "wrong": ([GOOD, {"id": "z", "status": "wrong", "reason": ""}], 4),
    "error": ([GOOD, {"id": "z", "status": "error", "reason": ""}], 4),
    "for another GPU": ([GOOD, {"id": "z", "status": "error", "reason": "", "incompatible": True}], 5),
}


@pytest.mark.parametrize("name", CODES)
def test_exit_codes(name):
    rows, code = CODES[name]
    assert verdict({"machine": {"status": "ok"}, "parts": {"a": {"rows": rows}}}, ["a"])[0] == code


def test_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--out", str(tmp_path)]) == 5
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["exit"] == 5 and report["parts"] == {} and report["machine"]["incompatible"]
    assert "exit 5" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--parts", "e"], ["--parts", ""], ["--engine", "/nowhere"]])
def test_what_cannot_be_checked_is_refused(words, tmp_path):
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert not (tmp_path / "out").exists()


# the branch of a GPU, as far as it goes without one


class Loader:
    """Notes what is loaded and launched."""

    def __init__(self):
        self.loaded, self.launched = [], []

    def load(self, image, symbol, shared):
        self.loaded.append((image[:4], symbol, shared))
        return symbol

    def launch(self, kernel, grid, threads, shared, args):
        self.launched.append((kernel, grid, threads, args))


def test_kernels_are_compiled_for_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("DSV2_CACHE_DIR", str(tmp_path))
    loader = Loader()
    gpu = device.Device(loader, "cpu", target("h200"), 3)
    case = gpu_check_plants.CASES["right"][0]
    config = case.kernel.default(case.dims, gpu.target)
    work = gpu.call(case.kernel, case.dims, config, "bf16", case.sizes, {"x": 512, "out": 1024})
    work()
    ((image, symbol, _),) = loader.loaded
    assert image == b"\x7fELF" and symbol == "rms_norm"
    ((kernel, grid, threads, args),) = loader.launched
    assert (kernel, threads) == ("rms_norm", 32 * config["num_warps"]) and grid[1:] == (1, 1)
    assert args == [512, 0, 0, 0, 1024, 0, case.sizes["rows"], 0, 0] and args[6].dtype == "int32"
    broken = replace(case.kernel, constants=lambda dims, config: {}["NOWHERE"])
    with pytest.raises(device.Refused, match="NOWHERE"):
        gpu.code(broken, case.dims, config, "bf16")


@pytest.mark.parametrize(
    ("dtype", "default", "status"),
    [("bf16", True, "error"), ("fp16", True, "error"), ("fp32", True, "refused"), ("bf16", False, "refused")],
)
def test_a_default_that_engines_start_from_has_to_fit(dtype, default, status):
    class Full:
        def code(self, *asked):
            raise device.Refused("327680 bytes of shared memory per block")

    item = {"kernel": "right", "case": 0, "config": {}, "dtype": dtype, "default": default}
    assert kernels.run((Full(), gpu_check_plants.CASES), item)["status"] == status


@pytest.mark.parametrize("at", [0, 3, 4, -1])
def test_an_input_is_compared_to_its_last_byte(at, monkeypatch):
    """It is read back in pieces."""
    monkeypatch.setattr(guarded, "PIECE", 4)
    gpu = device.open_device(target("h200"), host=True)
    case = gpu_check_plants.CASES["right"][0]
    x = case.inputs(torch.Generator().manual_seed(0))["x"].bfloat16()
    asked = case.kernel, case.dims, case.kernel.default(case.dims, gpu.target), case.sizes, "bf16", {"x": x}

    def launching(flipped):
        def call(kernel, dims, config, dtype, sizes, args, cubin):
            start = args["x"] - guarded.GUARD
            given = gpu.driver.block(start)[guarded.GUARD : guarded.GUARD + 2 * x.numel()]
            return lambda: np.bitwise_xor.at(given, at, flipped)

        monkeypatch.setattr(gpu, "call", call)
        guarded.Guarded(gpu)(*asked)

    launching(0)
    with pytest.raises(Violation, match="x changed, which is no output"):
        launching(1)
