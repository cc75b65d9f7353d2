"""What the command line understands and what it refuses, and in which words."""

from __future__ import annotations

import pytest

from dsv2_compile.cli.main import main
from tests import toy_engine
from tests.cli_tools import checked


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "e"
    toy_engine.build(out)
    return out


REFUSED = {
    "": (2, "required: COMMAND"),
    "frobnicate": (2, "invalid choice: 'frobnicate'"),
    "-- build": (2, ""),
    "build": (2, "required: "),
    "build m -o e": (2, "one of the arguments --cpu --gpu is required"),
    "build m --cpu": (2, "-o/--output"),
    "build m --cpu --gpu h800 -o e": (2, "not allowed with"),
    "build m --cpu -o e --max-batch-size 0": (2, "at least 1"),
    "build m --cpu -o e --max-seq-len many": (2, "'many' is not an integer"),
    "build m --cpu -o e --mla-form absorbed": (2, "not PHASE=FORM"),
    "build m --cpu -o e --verify": (2, "unrecognized arguments: --verify"),
    "build m --cpu -o e --max-batch 4": (2, "unrecognized arguments"),
    "build m --cpu -o e --backend tvm": (2, "no backend 'tvm'"),
    "build m --cpu -o e --backend cuda": (2, "Backend cuda is for GPUs, not for --cpu"),
    "build m --gpu h800 -o e --backend onnxruntime": (2, "Backend onnxruntime is for CPUs, not for --gpu"),
    "build m --cpu -o e --dtype bfloat16": (2, "does not compute in bfloat16"),
    "build m --gpu h800 -o e --portable": (2, "--portable has no effect for backend cuda"),
    "build m --gpu voodoo2 -o e": (2, "unknown target 'voodoo2'"),
    "build m --gpu cpu -o e": (2, "cpu is not a GPU"),
    "build m --gpu h800 -o e --backend tensorrt": (5, "tensorrt backend, which is not part of this version"),
    "build m --gpu b200 -o e --backend tensorrt": (5, "tensorrt backend, which is not part of this version"),
    "verify e --report r.pdf": (2, "report r.pdf cannot be written"),
    "verify e --report /no/such/r.html": (2, "cannot be a file"),
    "verify nowhere": (2, "nowhere is not a directory"),
    "inspect nowhere": (2, "nowhere is not a directory"),
    "run nowhere x": (2, "nowhere is not a directory"),
    "run nowhere x --temperature -1": (2, "temperature is -1.0"),
    "run nowhere x --temperature warm": (2, "invalid float value: 'warm'"),
    "run nowhere x --top-k 4": (2, "--top-k has no effect at temperature 0"),
    "run nowhere x --seed 1 --top-p 0.5": (2, "--top-p, --seed has no effect at temperature 0"),
    "run nowhere 1,x --ids": (2, "not '1,x'"),
    "synth huge -o out": (2, "no preset 'huge'"),
    "synth tiny -o out --set layers": (2, "not NAME=VALUE"),
    "synth tiny -o out --set wheels=4": (2, "no setting wheels"),
    "synth tiny -o out --max-shard-size 4Q": (2, "not a number of bytes"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused_with_cause_and_remedy(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, cause = REFUSED[line]
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    error, help_ = [s for s in err.splitlines() if s not in ("loading", "looking around")]
    assert error.startswith("error: ")
    assert cause in error
    assert help_.startswith("help: ")
    assert len(help_) > 12
    assert not list(tmp_path.iterdir())

    words = line.split()
    assert main(["--json", *words] if "--" in words else [*words, "--json"]) == code
    answer = checked(capsys.readouterr().out)
    assert answer["status"] == "error"
    assert answer["error"]["code"] == {2: "UsageError", 5: "IncompatibleError"}[answer["exit"]]


def test_an_unknown_target_is_told_the_known_ones(capsys):
    assert main(["build", "m", "--gpu", "h8000", "-o", "e"]) == 2
    err = capsys.readouterr().err
    assert "h800, h100, h200" in err


def test_what_another_backend_is_told_to_do(capsys):
    assert main(["build", "m", "--gpu", "h800", "-o", "e", "--backend", "tensorrt"]) == 5
    assert "Leave --backend out" in capsys.readouterr().err


ANYWHERE = [
    ["run", "E", "ab", "--max-new-tokens", "3"],
    ["run", "E", "--max-new-tokens", "3", "ab"],
    ["run", "--max-new-tokens", "3", "E", "ab"],
    ["run", "E", "--max_new_tokens", "3", "ab"],
    ["run", "E", "--max_new_tokens=3", "--", "ab"],
    ["run", "-q", "E", "ab", "--max-new-tokens=3"],
]


@pytest.mark.parametrize("args", ANYWHERE, ids=" ".join)
def test_options_stand_anywhere_and_may_be_spelled_with_underscores(args, toy, capsys):
    assert main(["run", str(toy), "ab", "--max-new-tokens", "3"]) == 0
    expected = capsys.readouterr().out
    assert main([str(toy) if a == "E" else a for a in args]) == 0
    assert capsys.readouterr().out == expected


def test_underscores_in_values_and_prompts_stay(toy, capsys):
    assert main(["run", str(toy), "--json", "--max-new-tokens=1", "--", "--a_b", "--json"]) == 0
    answer = checked(capsys.readouterr().out)
    assert [c["prompt_tokens"] for c in answer["completions"]] == [5, 6]
    assert main(["build", "m", "--cpu", "-o", "e", "--mla_form=pre_fill=x"]) == 2
    assert "'pre_fill'" in capsys.readouterr().err


def test_several_prompts_come_out_in_their_order(toy, capsys):
    alone = []
    for prompt in ("3 4 5", "7"):
        assert main(["run", str(toy), "--ids", "-q", "--max-new-tokens", "5", prompt]) == 0
        alone.append(capsys.readouterr().out)
    assert main(["run", str(toy), "--ids", "-q", "--max-new-tokens", "5", "3,4,5", "7"]) == 0
    assert capsys.readouterr().out == f"==> prompt 1 <==\n{alone[0]}==> prompt 2 <==\n{alone[1]}"


def test_a_seed_repeats_a_draw(toy, capsys):
    draws = []
    for seed in ("1", "1", "2"):
        options = ["--ids", "-q", "--temperature", "50", "--seed", seed, "--max-new-tokens", "12"]
        assert main(["run", str(toy), "1 2", *options]) == 0
        draws.append(capsys.readouterr().out)
    assert draws[0] == draws[1] != draws[2]


def test_quiet_says_nothing_but_data(toy, capsys):
    assert main(["run", str(toy), "ab", "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["run", str(toy), "ab"]) == 0
    assert "tokens/s" in capsys.readouterr().err
