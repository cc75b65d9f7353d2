"""The commands on a real engine: built, shown, proven, spoiled, measured; builds that are stopped go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.cli import build
from dsv2_compile.cli.main import main
from dsv2_compile.cli.output import Console
from dsv2_compile.engine import integrity
from tests import toy_engine
from tests.cli_tools import (
    LIMITS,
    SETTINGS,
    checked,
    cli,
    once,
    resealed,
    scale_weight,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with checkpoint and engine, and the two JSON objects that came out of making them."""

    def make(folder: Path) -> None:
        for name, args in (
            ("synth", ["synth", "tiny-lite", "-o", folder / "checkpoint", *SETTINGS]),
            ("build", ["build", folder / "checkpoint", "--cpu", "-o", folder / "engine", *LIMITS]),
        ):
            ran = cli(*args, "--json")
            assert ran.code == 0, ran.err
            (folder / f"{name}.json").write_text(ran.out)

    return once(tmp_path_factory.getbasetemp(), "cli-engine", make)


@pytest.fixture(scope="module")
def engine(made):
    return made / "engine"


@pytest.fixture(scope="module")
def spoiled(engine, tmp_path_factory):
    """One weight scaled by 1.001 after the proof."""
    name = next(n for n in integrity.read_manifest(engine).weights if "lm_head" in n)
    return resealed(engine, tmp_path_factory.mktemp("spoiled") / "e", scale_weight(name, 1.001))


def test_what_synth_answers(made):
    answer = checked((made / "synth.json").read_text())
    assert answer["checkpoint"] == str(made / "checkpoint")
    assert answer["config"]["num_hidden_layers"] == 2
    assert sorted(answer["files"]) == sorted(p.name for p in (made / "checkpoint").iterdir())


def test_what_build_answers(made, engine):
    answer = checked((made / "build.json").read_text())
    manifest = integrity.read_manifest(engine)
    assert answer["engine_status"] == manifest.status == "verified"
    assert answer["files"] == {k: dataclasses.asdict(v) for k, v in manifest.files.items()}
    assert answer["bytes"] == sum((engine / f).stat().st_size for f in manifest.files)
    assert answer["numerics"] == manifest.numerics
    assert {p["name"] for p in answer["passes"]} >= {"absorb", "attention", "experts"}
    assert (manifest.max_seq_len, manifest.max_batch_size) == (128, 2)


def test_dry_run_writes_nothing(made, tmp_path):
    ran = cli("build", made / "checkpoint", "--cpu", "-o", tmp_path / "e", *LIMITS, "--dry-run", "--json")
    plan = ran.answer()["plan"]
    assert list(tmp_path.iterdir()) == []
    built = checked((made / "build.json").read_text())
    assert plan["passes"] == built["passes"]
    estimate = plan["estimate"]
    assert estimate["largest_weight_bytes"] < estimate["weights_bytes"] < built["bytes"] <= estimate["disk_bytes"]
    assert set(plan["programs"]) == {"prefill", "decode"}


def test_refused_output_before_any_work(made, engine, capsys):
    assert main(["build", str(made / "checkpoint"), "--cpu", "-o", str(engine)]) == 2
    err = capsys.readouterr().err
    assert "exists" in err
    assert "--force" in err
    assert "export" not in err


def test_inspect_shows_what_was_built(engine, capsys):
    assert main(["inspect", str(engine), "--json"]) == 0
    answer = checked(capsys.readouterr().out)
    manifest = integrity.read_manifest(engine)
    assert answer["model"]["num_hidden_layers"] == 2
    assert answer["files"]["count"] == sum(1 for p in engine.rglob("*") if p.is_file())
    for phase, p in answer["programs"].items():
        assert p["mla_form"] == manifest.programs[phase].mla_form
        assert p["mla_reason"].startswith(p["mla_form"])
        assert p["bytes"] == sum(o["bytes"] for o in p["operators"]) > 0
        assert p["flops"] == sum(o["flops"] for o in p["operators"]) > 0
    kv = answer["kv_cache"]
    assert kv["engine"] == {**kv["engine"], "bits": 32, "bytes_per_token": 2 * (64 + 16) * 4}

    assert main(["inspect", str(engine)]) == 0
    text = capsys.readouterr().out
    for part in ("verified", "MLA in decode:", "operators of prefill", "fp64 error", "worst.rel_l2_p95", "320 bytes"):
        assert part in text
    assert "hashes were not" in text


def test_the_published_kv_cache_arithmetic(tmp_path, capsys):
    """DeepSeek-V2 keeps 93.3 % less than DeepSeek 67B, at 6 bits: 25,920 bytes per token of 389,120."""
    toy_engine.build(tmp_path / "e", model=PRESETS["v2"])
    assert main(["inspect", str(tmp_path / "e"), "--json"]) == 0
    kv = checked(capsys.readouterr().out)["kv_cache"]
    assert (kv["at_6_bit"]["bytes_per_token"], kv["deepseek_67b_bytes_per_token"]) == (25920, 389120)
    assert 1 - kv["at_6_bit"]["of_deepseek_67b"] == pytest.approx(0.933, abs=5e-4)
    assert main(["inspect", str(tmp_path / "e")]) == 0
    assert "25,920 bytes per token at 6 bit: 6.66% of the 389,120 of DeepSeek 67B" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "keys", "shown", "hidden"),
    [
        (["--passes"], {"passes"}, "canonicalise", "operators of"),
        (["--ops"], {"programs"}, "operators of decode", "canonicalise"),
        (["--ops", "--passes"], {"programs", "passes"}, "operators of decode", "KV cache"),
    ],
    ids=["passes", "operators", "both"],
)
def test_inspect_shows_parts(engine, capsys, flags, keys, shown, hidden):
    assert main(["inspect", str(engine), *flags, "--json"]) == 0
    answer = checked(capsys.readouterr().out)
    assert set(answer) == {"schema", "status", "exit", "warnings", "engine", "hashes_checked", *keys}
    assert main(["inspect", str(engine), *flags]) == 0
    out = capsys.readouterr().out
    assert shown in out
    assert hidden not in out


def test_inspect_shows_one_program(engine, capsys):
    assert main(["inspect", str(engine), "--program", "decode", "--json"]) == 0
    answer = checked(capsys.readouterr().out)
    assert list(answer["programs"]) == ["decode"]
    assert {p["phase"] for p in answer["passes"]} == {"decode"}
    assert main(["inspect", str(engine), "--program", "extend"]) == 2
    assert "decode, prefill" in capsys.readouterr().err


def test_inspect_refuses_a_cost_report_that_is_none(engine, tmp_path, capsys):
    def spoil(root, manifest):
        (root / "programs.json").write_text('{"decode": {"sizes": {}, "operators": [{"op": 3}]}}')
        return manifest

    assert main(["inspect", str(resealed(engine, tmp_path / "e", spoil))]) == 8
    assert "programs.json: " in capsys.readouterr().err


def test_verify_passes_offline_and_from_the_checkpoint(made, engine):
    ran = cli("verify", engine, "--checkpoint", made / "checkpoint", "--json")
    answer = ran.answer()
    assert ran.code == 0
    assert answer["report"]["passed"]
    assert answer["report"]["oracle_difference"] < answer["report"]["oracle_limit"]
    offline = cli("verify", engine, setup="sys.modules['torch'] = None")
    assert offline.code == 0, offline.err
    assert "passed: " in offline.out


def test_verify_fails_with_4(spoiled, capsys):
    assert main(["verify", str(spoiled)]) == 4
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert "does not compute what the eager model computes" in err
    assert main(["verify", str(spoiled), "--json"]) == 4
    answer = checked(capsys.readouterr().out)
    assert (answer["report"]["passed"], answer["error"]["code"]) == (False, "NumericError")
    assert any(s["verdict"]["failed"] for s in answer["report"]["sections"] if s["layer"] is None)


def test_verify_with_another_checkpoint_fails_with_4(engine, tmp_path, capsys):
    assert main(["synth", "tiny-lite", "-o", str(tmp_path / "c"), *SETTINGS, "--seed", "1", "-q"]) == 0
    assert main(["verify", str(engine), "--checkpoint", str(tmp_path / "c")]) == 4
    assert "not of this checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["html", "svg"])
def test_verify_writes_a_report(engine, tmp_path, capsys, ending):
    file = tmp_path / f"r.{ending}"
    assert main(["verify", str(engine), "--report", str(file), "--json"]) == 0
    assert checked(capsys.readouterr().out)["report_file"] == str(file)
    assert file.stat().st_size > 1000


def test_a_build_whose_engine_is_rejected_ends_with_4(engine, spoiled, capsys):
    """The outcome as `pipeline.build` hands it over, with the report of an engine that is really off."""
    from dsv2_compile.pipeline import BuildReport
    from dsv2_compile.verify import verify_engine

    manifest = dataclasses.replace(integrity.read_manifest(spoiled), status="unverified")
    report = BuildReport(Path("out.unverified"), manifest, 1.0, verify_engine(spoiled), ("a note",))
    result = build._built(report, Console())
    assert result.error is not None
    assert result.error.exit_code == 4
    assert "out.unverified" in result.error.remedy
    assert result.data["engine_status"] == "unverified"
    out, err = capsys.readouterr()
    assert out == ""
    assert "warning: a note" in err


def test_run_and_bench(engine, capsys):
    assert main(["run", str(engine), "The cache", "--max-new-tokens", "5", "--json"]) == 0
    answer = checked(capsys.readouterr().out)
    (completion,) = answer["completions"]
    assert 1 <= len(completion["ids"]) <= 5
    assert answer["stats"]["new_tokens"] == len(completion["ids"])
    options = ["--prompt-lengths", "4,8", "--contexts", "8", "--steps", "2", "--repeats", "1", "--threads", "1"]
    assert main(["bench", str(engine), *options]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:4]] == [
        ["prefill", "4"],
        ["prefill", "8"],
        ["decode", "8"],
    ]
    assert main(["bench", str(engine), *options, "--json"]) == 0
    assert checked(capsys.readouterr().out)["report"]["workload"]["decode_steps"] == 2


def test_bench_beside_eager(made, engine):
    options = ["--prompt-lengths", "4", "--contexts", "4", "--steps", "1", "--repeats", "1", "--rounds", "1"]
    ran = cli("bench", engine, "--checkpoint", made / "checkpoint", "--against", "eager", *options, "--json")
    comparison = ran.answer()["comparison"]
    assert [r["failure"] for r in comparison["runs"]] == [None, None]
    assert {line["subject"] for line in comparison["summary"]} == {"engine", "eager"}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--prompt-lengths", "1000"], 2),
        (["--prompt-lengths", "4,x"], 2),
        (["--rounds", "2"], 2),
        (["--checkpoint", "nowhere"], 2),
        (["--checkpoint", ".", "--against", "vllm"], 2),
    ],
    ids=lambda v: str(v),
)
def test_bench_refuses(engine, args, code, capsys):
    assert main(["bench", str(engine), *args, "--json"]) == code
    assert checked(capsys.readouterr().out)["error"]["code"] == "UsageError"
