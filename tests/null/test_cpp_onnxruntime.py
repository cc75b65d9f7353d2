"""CPU engines in C++, through the C ABI, with the library of the wheel: the bits of Python, and its refusals."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dsv2_compile.backends.onnxruntime import place
from dsv2_compile.engine.manifest import ProgramEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.errors import Dsv2Error
from dsv2_compile.runtime import Draw, Engine, Sampling, ort
from tests import cpp_abi, cpp_build, small_engine, toy_engine
from tests.cpp_abi import INCOMPATIBLE, NUMERIC, USAGE, AbiError
from tests.toy_engine import MAX_BATCH, NAN

(WHEEL,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
GREEDY = Draw(Sampling(), 0.0)
HEADS = 200
"""So many that attention scores limit the chunks of several toy prompts."""


@pytest.fixture(scope="module")
def library():
    return cpp_abi.Library(cpp_build.library())


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Its token 0 is NaN as well: whatever padding a caller passes, a row is padded with its own tokens."""
    out, source = tmp_path_factory.mktemp("engines") / "toy", toy_engine.ToySource()
    source.tensors["emb"][0] = float("nan")
    toy_engine.build(out, source=source, model=dataclasses.replace(toy_engine.CONFIG, num_attention_heads=HEADS))
    return out


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """An engine of the compiler's own programs."""
    out, config = tmp_path_factory.mktemp("engines") / "small", small_engine.SMALL
    parts = small_engine.lowered(config)
    with EngineWriter(out) as w:
        recipes = {name: r for part in parts.values() for name, r in part.weights.items()}
        placements = w.write_weights(recipes, small_engine.Weights(config), torch.float32)
        programs = toy_engine.manifest().programs
        for phase, part in parts.items():
            w.add_bytes(f"{phase}.onnx", place(part.model, placements).SerializeToString())
            programs[phase] = dataclasses.replace(programs[phase], session_options=part.session_options)
        w.finish(toy_engine.manifest(model=config, programs=programs, max_seq_len=small_engine.POSITIONS))
    return out


class Both:
    """The same calls on a session in Python and one in C++, whose answers are held to be the same bits."""

    def __init__(self, python, cpp) -> None:
        self.python, self.cpp = python, cpp

    def __call__(self, name: str, *arguments):
        expected, got = (getattr(s, name)(*arguments) for s in (self.python, self.cpp))
        if expected is None:
            assert got is None
        elif expected.dtype == np.float32:
            assert got.tobytes() == expected.tobytes(), f"{name}: at most {np.abs(got - expected).max()} apart"
        else:
            assert got.tolist() == expected.tolist(), name


def pair(library, path: Path, threads: int, slots: int, positions: int):
    """Closed with the test's process."""
    engine = Engine.load(path, threads=threads)
    other = library.load(path, threads=threads, onnxruntime=str(WHEEL))
    return engine, Both(engine.session(slots, positions), other.session(slots, positions))


@pytest.mark.parametrize(
    ("kind", "threads", "slots", "positions", "longest", "calls"),
    [("toy", 1, MAX_BATCH, 2048, 900, 150), ("toy", 1, 1, 2048, 900, 40), ("compiled", 2, 4, 96, 30, 120)],
    ids=["toy", "toy-one-slot", "compiled"],
)  # fmt: skip
def test_random_traffic_gives_the_same_bits(library, request, kind, threads, slots, positions, longest, calls):
    """Any subset of slots in any order, ragged, in chunks, growing, freed and used again, restored."""
    engine, both = pair(library, request.getfixturevalue(kind), threads, slots, positions)
    config, rng = engine.config, np.random.default_rng(calls)
    live: dict[int, int] = {}
    made = dict.fromkeys(["prefill", "start", "extend", "resume", "decode", "step", "restore", "free"], 0)

    def draws(n: int) -> list[Draw]:
        sampling = [Sampling(float(rng.choice([0, 0.7, 30])), int(rng.integers(0, 9)), 0.95) for _ in range(n)]
        return [Draw(s, float(rng.random())) for s in sampling]

    while min(made.values()) < 3 or sum(made.values()) < calls:
        name = str(rng.choice(list(made)))
        fresh = name in ("prefill", "start", "restore")
        pool = list(range(slots)) if fresh else [s for s, n in live.items() if n + longest <= positions]
        if not pool:
            both("free", [s for s, n in live.items() if n + longest > positions]) if live else None
            live = {}
            continue
        chosen = rng.permutation(pool)[: rng.integers(1, len(pool) + 1)].tolist()
        made[name] += 1
        if name == "free":
            both("free", chosen)
            live = {s: n for s, n in live.items() if s not in chosen}
            continue
        counts = rng.integers(1, rng.choice([2, 5, longest + 1]), len(chosen))
        ids = rng.integers(NAN + 1, config.vocab_size, (len(chosen), counts.max()))
        ids[np.arange(ids.shape[1])[None] >= counts[:, None]] = rng.choice([-1, 0, NAN])
        if name in ("decode", "step"):
            counts[:] = 1
            both(name, ids[:, 0], *([draws(len(chosen))] if name == "step" else []), chosen)
        elif name == "restore":
            shape = (config.num_hidden_layers, len(chosen), counts.max(), config.cache_dim)
            both(name, rng.standard_normal(shape, np.float32), counts, chosen)
        elif name in ("start", "resume"):
            both(name, ids, counts, draws(len(chosen)), chosen)
        else:
            both(name, ids, counts, chosen)
        for slot, count in zip(chosen, counts.tolist(), strict=True):
            live[slot] = (0 if fresh else live[slot]) + count
            assert both.cpp.length(slot) == both.python.length(slot) == live[slot]


def test_rows_without_slots_are_the_first_ones_and_batches_of_every_size(library, compiled):
    _, both = pair(library, compiled, 1, 4, 64)
    for rows in range(1, 5):
        ids = np.arange(14, 14 + 9 * rows).reshape(rows, 9)
        both("prefill", ids, np.arange(9, 9 - rows, -1))
        both("decode", ids[:, 0])


def test_sessions_share_programs_and_nothing_else(library, toy):
    engine = library.load(toy, threads=1, onnxruntime=str(WHEEL))
    with engine.session(2, 40) as a, engine.session(1, 30) as b, engine.session(1, 30) as fresh:
        a.prefill([[20, 21], [40, 41]], [2, 2])
        b.prefill([[30]], [1])
        expected = fresh.prefill([[40, 41, 42]], [3])
        b.decode([31])
        np.testing.assert_allclose(a.decode([22, 42])[1], expected[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("where", ["decode", "extend", "step"])
def test_nan_is_a_numeric_error_and_sequences_are_as_before(library, toy, where):
    _, both = pair(library, toy, 1, 3, 64)
    both("prefill", [[20, 21, 22], [30, 31, 0]], [3, 2], [0, 2])
    arguments = {
        "decode": ([NAN, 40], [0, 2]),
        "step": ([NAN, 40], [GREEDY] * 2, [0, 2]),
        "extend": ([[40, NAN], [41, 42]], [2, 2], [2, 0]),
    }[where]
    with pytest.raises(Dsv2Error) as expected:
        getattr(both.python, where)(*arguments)
    with pytest.raises(AbiError) as e:
        getattr(both.cpp, where)(*arguments)
    assert e.value.code == NUMERIC
    assert (e.value.cause, e.value.remedy) == (expected.value.cause, expected.value.remedy)
    both("decode", [23, 32], [0, 2])


def _recorder(folder: Path, only: int = -1) -> tuple[Path, Path]:
    """A library that stands before ONNX Runtime's, and its log."""
    recorder, log = folder / "libonnxruntime.so", folder / "log"
    macros = [f'-DREAL="{WHEEL}"', f'-DLOG="{log}"', f"-DONLY={only}"]
    source = Path(cpp_abi.__file__).with_name("ort_recorder.cpp")
    subprocess.run(["c++", "-std=c++17", "-shared", "-fPIC", *macros, source, "-o", recorder], check=True)
    return recorder, log


@pytest.mark.parametrize("threads", [0, 3])
def test_settings_reach_onnxruntime(library, tmp_path, threads):
    recorder, log = _recorder(tmp_path)
    toy_engine.build(tmp_path / "e", programs=_with_options(**dict.fromkeys(ort.OPTIONS, "1")))
    with library.load(tmp_path / "e", threads=threads, onnxruntime=str(recorder)) as engine, engine.session() as s:
        assert np.isfinite(s.prefill([[20]], [1])).all()
    settings = [f"intra {threads or len(os.sched_getaffinity(0))}", "inter 1", "severity 4"]
    assert log.read_text().splitlines() == [*settings, *(f"{name} 1" for name in sorted(ort.OPTIONS)), *settings]


@pytest.mark.parametrize("written", [0, 1], ids=["logits", "rows"])
def test_an_output_that_a_program_does_not_write_is_seen(library, toy, tmp_path, written):
    recorder, _ = _recorder(tmp_path, only=written)
    with library.load(toy, threads=1, onnxruntime=str(recorder)) as engine, engine.session() as session:
        with pytest.raises(AbiError) as e:
            session.prefill([[20]], [1])
        assert e.value.code == NUMERIC


def test_the_environment_names_the_library(library, toy, monkeypatch):
    monkeypatch.setenv("DSV2_ONNXRUNTIME", str(WHEEL))
    with library.load(toy, threads=1) as engine, engine.session() as session:
        assert np.isfinite(session.prefill([[20]], [1])).all()
    monkeypatch.setenv("DSV2_ONNXRUNTIME", "/nowhere/libonnxruntime.so.1")
    with pytest.raises(AbiError, match="/nowhere"):
        library.load(toy, threads=1)


@pytest.mark.parametrize("source", ["no such file", "another library", "an older version"])
def test_a_library_that_cannot_be_used_is_incompatible(library, toy, tmp_path, source):
    path = tmp_path / "libonnxruntime.so.1"
    if source != "no such file":
        code = "int something_else;"
        if source == "an older version":
            code = """
            static const void *get_api(unsigned version) { (void)version; return 0; }
            static const char *version(void) { return "1.2.3"; }
            static const struct { const void *(*a)(unsigned); const char *(*b)(void); } base = {get_api, version};
            const void *OrtGetApiBase(void) { return &base; }"""
        command = ["c++", "-x", "c++", "-shared", "-fPIC", "-o", str(path), "-"]
        subprocess.run(command, input=f'extern "C" {{ {code} }}', text=True, check=True)
    with pytest.raises(AbiError) as e:
        library.load(toy, threads=1, onnxruntime=str(path))
    assert e.value.code == INCOMPATIBLE
    expected = {
        "no such file": "cannot be opened",
        "another library": "is not ONNX",
        "an older version": "is ONNX Runtime 1.2.3;",
    }
    assert str(path) in e.value.cause and expected[source] in e.value.cause
    assert "DSV2_ONNXRUNTIME" in e.value.remedy


def _other_programs(out: Path, model: bytes) -> None:
    with EngineWriter(out) as w:
        for name in ("prefill.onnx", "decode.onnx"):
            w.add_bytes(name, model)
        w.finish(toy_engine.manifest())


def _one_output() -> bytes:
    """A model with the outputs of a program but for rows, and an input that is none of a program."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 5])
    other = helper.make_tensor_value_info("past", TensorProto.FLOAT, ["batch"])
    out = helper.make_tensor_value_info("logits", TensorProto.INT64, ["batch", 5])
    graph = helper.make_graph([helper.make_node("Identity", ["tokens"], ["logits"])], "g", [value, other], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def _with_options(**options: str) -> dict[str, ProgramEntry]:
    programs = toy_engine.manifest().programs
    return {**programs, "decode": dataclasses.replace(programs["decode"], session_options=options)}


REFUSED = {
    "newer onnxruntime": lambda out: toy_engine.build(out, toolchain={"onnxruntime": "99.1.0"}),
    "no version": lambda out: toy_engine.build(out, toolchain={"onnxruntime": "one"}),
    "not stated": lambda out: toy_engine.build(out, toolchain={}),
    "an option that names a file": lambda out: toy_engine.build(
        out, programs=_with_options(**{"session.model_external_initializers_file_folder_path": "/"})
    ),
    "no decode": lambda out: toy_engine.build(out, programs={"prefill": toy_engine.manifest().programs["prefill"]}),
    "no model": lambda out: _other_programs(out, b"not a model"),
    "another signature": lambda out: _other_programs(out, _one_output()),
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED.keys())
def test_the_same_engines_are_refused_with_the_same_words(library, tmp_path, build):
    build(tmp_path / "e")
    with pytest.raises(Dsv2Error) as expected:
        Engine.load(tmp_path / "e", threads=1)
    with pytest.raises(AbiError) as e:
        library.load(tmp_path / "e", threads=1, onnxruntime=str(WHEEL))
    assert e.value.code == INCOMPATIBLE
    assert e.value.remedy == expected.value.remedy
    assert e.value.problems == tuple(expected.value.problems)
    # what ONNX Runtime says begins with a code in Python only
    ours, _, theirs = expected.value.cause.partition("[ONNXRuntimeError]")
    assert e.value.cause.startswith(ours)
    assert theirs or e.value.cause == ours


def test_an_option_without_effect_is_a_usage_error(library, toy):
    with pytest.raises(AbiError, match="cache_tokens has no effect") as e:
        library.load(toy, threads=1, cache_tokens=64, onnxruntime=str(WHEEL))
    assert e.value.code == USAGE
