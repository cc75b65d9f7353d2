"""The figure scripts at toy size: that they run to the end and write what they measured."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def figures(monkeypatch, tmp_path):
    def run(name: str, *words: str):
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, "--out", str(out), *words])
        importlib.import_module(f"tests.slow.{name}").main()
        return json.loads(out.read_text())

    return run


def test_export(figures):
    found = figures("bench_export", "--presets", "tiny-lite:2", "tiny-lite", "--rounds", "1")
    assert [(s["preset"], s["check"], s["layers"]) for s in found["summary"]] == [
        (preset, check, layers) for check in (False, True) for preset, layers in (("tiny-lite:2", 2), ("tiny-lite", 3))
    ]
    for r in found["runs"]:
        for program in r["programs"].values():
            assert program["nodes_exported"] > program["nodes_fused"] > 0
            assert all((p["error"] is not None) == r["check"] for p in program["passes"])
            assert [p["nodes_after"] for p in program["passes"]][-1] == program["nodes_fused"]


def test_build(figures, tmp_path):
    found = figures("bench_build", "--preset", "tiny", "--cases", '{"layers": 1}', "--scratch", str(tmp_path))
    (case,) = found["cases"]
    assert case["build"]["status"] == "verified" and case["build"]["engine_bytes"] > case["synth"]["bytes"]
    assert case["aim"]["met"] == (case["build"]["peak_private_bytes"] <= case["aim"]["peak_private_bytes"])
    assert len(found["help"]["runs"]) == 5 and found["skipped"] == []


def test_decode(figures, tmp_path):
    found = figures(
        "bench_decode", "--preset", "tiny", "--set", "layers=2", "--prompt-lengths", "16", "--contexts", "32", "64",
        "--capacities", "256", "1024", "--steps", "4", "--rounds", "2", "--subjects", "engine", "eager",
        "--scratch", str(tmp_path),
    )  # fmt: skip
    order = [(r["subject"], r["round"], r["failure"]) for r in found["comparison"]["runs"]]
    assert order == [("engine", 1, None), ("eager", 1, None), ("engine", 2, None), ("eager", 2, None)]
    assert found["same_top1"] is True, "engine and transformers disagree on the likeliest token"
    assert set(found["bandwidth"]["share_of_bandwidth"]) == {"32", "64"}
    assert {k: set(v) for k, v in found["ms_by_context_and_capacity"].items()} == {
        c: {"256", "1024"} for c in ("32", "64")
    }


def test_cpp_cpu(figures, tmp_path):
    found = figures(
        "bench_cpp_cpu", "--engines", "tiny:layers=2", "--prompt", "8", "--context", "16", "--steps", "4",
        "--rounds", "1", "--repeats", "1", "--scratch", str(tmp_path),
    )  # fmt: skip
    (engine,) = found["engines"].values()
    for runs in engine["runs"].values():
        (run,) = runs
        assert len(run["prefill_ms"]) == 1 and len(run["decode_ms"]) == 4 and min(run["decode_ms"]) > 0
        assert run["checking_seconds"] > 0 and run["memory"]["loaded"]["anon"] >= run["memory"]["before"]["anon"] > 0
    assert set(engine["summary"]) == set(engine["runs"]) == {"python", "cpp"}


def test_runtime_overhead(figures):
    found = figures(
        "bench_runtime_overhead", "--preset", "tiny", "--set", '{"num_hidden_layers": 2}', "--batches", "1", "2",
        "--cached", "70", "--calls", "5", "--rounds", "1",
    )  # fmt: skip
    cases = [(c["kind"], c["batch"]) for c in found["cases"]]
    assert cases == [(kind, batch) for kind in ("step", "decode", "resume") for batch in (1, 2)]
    assert all(c["launches"] > 20 and min(c[s]["us"]["least"] for s in ("python", "cpp")) > 0 for c in found["cases"])


def test_cpp_verdicts(figures):
    found = figures(
        "bench_cpp_verdicts", "--engines", "70", "--texts", "50", "--files", "50", "--flips", "20", "--cuts", "5"
    )  # fmt: skip
    assert found["engines"]["count"] == 70 and found["damage"]["found"] == 25
    assert found["json"]["count"] > 50 and found["safetensors"]["count"] > 50
    assert all(r["cpp"]["peak_mb"] > 0 for r in found["large"].values())


def test_cpp_fuzz(figures):
    found = figures("bench_cpp_fuzz", "--seconds", "2", "--targets", "plan")
    assert found["targets"]["plan"]["executions"] > 100


def test_kernels_compile(figures):
    found = figures("bench_kernels_compile", "--models", "tiny-lite", "--targets", "h800", "a100", "--rows", "1", "16")
    assert [t["target"] for t in found["targets"]] == ["h800", "a100"] and found["skipped"] == []
    assert all(t["kernels"] >= t["distinct_cubins"] > 10 for t in found["targets"])
    assert all((t["from_cache"], t["refused"]) == (0, []) for t in found["targets"])
    for row in found["kernels"]:
        assert (
            row["registers"] > 0
            and row["cubin_bytes"] > 1000
            and row["blocks_per_sm"] > 0
            and row["processor_seconds"] > 0
        )
        assert all(place["model"] == "tiny-lite" for place in row["used_for"])


def test_planted_kernels(figures):
    found = figures("bench_planted_kernels", "--most", "1", "--kernels", "embedding", "rms_norm")
    assert set(found["by_kernel"]) == {"embedding", "rms_norm"} and found["all"]["selected"] == 0
    assert found["all"]["planted"] == len(found["plants"]) > 12


def test_serve(figures, tmp_path):
    found = figures(
        "bench_serve", "--engine", "tiny", "--requests", "6", "--prompt", "16", "--new-tokens", "4", "--soak", "0.3",
        "--clients", "1", "3", "--threads", "1", "--scratch", str(tmp_path),
    )  # fmt: skip
    assert set(found["levels"]) == {"one_by_one_without_a_server", "1_client", "3_clients"}
    for level in found["levels"].values():
        assert level["time_to_first_token"]["samples"] == 6
        assert level["time_per_output_token"]["samples"] == level["new_tokens"] - 6 > 0
    soak = found["soak"]
    assert soak["errors"] == 0, soak["outcomes"]
    assert soak["server"]["cancelled"] > 0 and soak["server"]["exit"] == 143
    for server in (found["server"], soak["server"]):
        assert server["live"] == server["waiting"] == server["failed"] == 0
        assert server["submitted"] == server["finished"] + server["cancelled"]
