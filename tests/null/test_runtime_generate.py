"""Sampling, text, and generation."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from dsv2_compile.errors import ModelError, UsageError
from dsv2_compile.runtime import Engine, Sampling
from dsv2_compile.runtime.sampling import Draw, columns, sample
from dsv2_compile.runtime.text import Text, TextStream
from tests import toy_engine
from tests.toy_engine import CONFIG, EOS, MAX_BATCH, MAX_SEQ, NAN

SOURCE = toy_engine.ToySource()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines") / "toy"
    toy_engine.build(out)
    with Engine.load(out, threads=1) as e:
        yield e


def greedy(ids: list[int], steps: int) -> list[int]:
    out: list[int] = []
    while len(out) < steps and EOS not in out:
        out.append(int(toy_engine.oracle(SOURCE, ids + out).argmax()))
        if out[-1] == NAN:
            raise AssertionError("choose another prompt: this one runs into the NaN token")
    return out


# Sampling


def draws(logits: list[float], sampling: Sampling, n: int = 4000) -> np.ndarray:
    rng = sampling.stream(0)
    values = np.array(logits, np.float32)
    return np.bincount([sample(values, sampling.draw(rng)) for _ in range(n)], minlength=len(logits)) / n


def test_greedy_takes_the_first_of_equal_maxima():
    assert sample(np.array([1, 3, 3, 0], np.float32), Draw(Sampling(), 0.5)) == 1


def test_temperature_samples_the_softmax():
    logits = [0.0, 1.0, 2.0, -50.0]
    for temperature in (0.5, 1.0, 2.0):
        p = np.exp(np.array(logits) / temperature)
        found = draws(logits, Sampling(temperature=temperature))
        assert np.abs(found - p / p.sum()).max() < 0.03
        assert found[3] == 0


def test_top_k_and_top_p_cut_the_tail():
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    assert (draws(logits, Sampling(1.0, top_k=2))[2:] == 0).all()
    assert np.abs(draws(logits, Sampling(1.0, top_k=2))[:2] - [0.625, 0.375]).max() < 0.03
    assert (draws(logits, Sampling(1.0, top_p=0.7))[2:] == 0).all()
    assert (draws(logits, Sampling(1.0, top_p=0.81)) > 0).tolist() == [True, True, True, False]
    assert draws(logits, Sampling(1.0, top_p=1e-9))[0] == 1
    assert draws(logits, Sampling(1.0, top_k=1))[0] == 1


def test_extreme_logits_and_temperatures_stay_finite():
    values = np.array([3e38, -3e38, 3e38, -np.inf], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert sample(values, Draw(Sampling(1e-300), 0.5)) in (0, 2)
        assert sample(values, Draw(Sampling(1e300), 0.5)) in (0, 1, 2)


def test_a_draw_takes_a_random_number_only_where_it_decides():
    rng, other = Sampling().stream(0), Sampling().stream(0)
    assert Sampling().draw(rng) == Draw(Sampling(), 0.0)
    assert Sampling(1.0).draw(rng) == Draw(Sampling(1.0), other.random())


def test_draws_as_inputs_of_a_program_have_its_types_and_ranges():
    found = columns([Draw(Sampling(1e300, 2**40, 0.5), 0.25), Draw(Sampling(), 0.0)])
    assert {n: v.dtype.name for n, v in found.items()} == {
        "temperature": "float32", "top_p": "float32", "top_k": "int32", "uniform": "float32",
    }  # fmt: skip
    assert {n: v.tolist() for n, v in found.items()} == {
        "temperature": [np.float32(1e38), 0.0], "top_p": [0.5, 1.0], "top_k": [2**31 - 1, 0], "uniform": [0.25, 0.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1}, {"top_p": 0},
     {"top_p": 1.1}, {"top_p": float("nan")}, {"seed": -1}],
    ids=str,
)  # fmt: skip
def test_bad_sampling_is_a_usage_error(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        Sampling(**bad)


# Text


def test_text_streams_whole_characters_and_adds_up():
    tokenizer = Tokenizer.from_str(toy_engine.tokenizer_json())
    text = "naïve 日本語 🙂👩‍👩‍👧 e\u0301 done " * 20
    ids = tokenizer.encode(text).ids
    assert len(ids) > len(text)
    stream, parts = TextStream(tokenizer), []
    for token in ids:
        parts.append(stream.push(token))
        assert "\ufffd" not in parts[-1]
    assert "".join(parts) + stream.end() == text


def test_random_bytes_stream_to_what_decoding_at_once_gives():
    tokenizer = Tokenizer.from_str(toy_engine.tokenizer_json())
    rng = np.random.default_rng(4)
    for _ in range(50):
        ids = rng.integers(0, 258, 80).tolist()
        stream = TextStream(tokenizer)
        assert "".join(stream.push(t) for t in ids) + stream.end() == tokenizer.decode(ids, skip_special_tokens=True)


def test_spaces_survive_where_decoding_strips_the_first_one():
    """Decoders of the sentencepiece kind drop the space before the first token of what they are given."""
    words = {w: i for i, w in enumerate(["▁a", "▁bc", "d"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="d"))
    tokenizer.decoder = decoders.Metaspace()
    ids = np.random.default_rng(6).integers(0, 3, 100).tolist()
    stream = TextStream(tokenizer)
    assert "".join(stream.push(t) for t in ids) == tokenizer.decode(ids)


def test_an_unfinished_character_comes_at_the_end():
    tokenizer = Tokenizer.from_str(toy_engine.tokenizer_json())
    stream = TextStream(tokenizer)
    first = tokenizer.encode("é").ids[0]
    assert stream.push(first) == ""
    assert stream.end() == "\ufffd"
    assert stream.end() == ""


def test_the_bos_token_is_added_where_the_tokenizer_config_asks(tmp_path):
    (tmp_path / "tokenizer.json").write_text(toy_engine.tokenizer_json())
    plain = Text(tmp_path, CONFIG).encode("ab")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert Text(tmp_path, CONFIG).encode("ab") == [CONFIG.bos_token_id, *plain]
    assert Text(tmp_path, CONFIG).encode("<bos>ab") == [CONFIG.bos_token_id, *plain]


@pytest.mark.parametrize(("name", "data"), [("tokenizer.json", b"{"), ("tokenizer.json", b"\xff"),
                                            ("tokenizer_config.json", b'{"a": 1, "a": 2}')])  # fmt: skip
def test_malformed_tokenizer_files_are_a_model_error(tmp_path, name, data):
    (tmp_path / "tokenizer.json").write_text(toy_engine.tokenizer_json())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError):
        Text(tmp_path, CONFIG)


# Generation


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(NAN + 1, 256, int(rng.integers(1, 30))).tolist() for _ in range(count)]


def test_greedy_generation_equals_the_oracle_for_more_prompts_than_slots(engine):
    many = prompts(2 * MAX_BATCH + 3)
    steps = 9
    found = engine.generate(many, max_new_tokens=steps).completions()
    for ids, got in zip(many, found, strict=True):
        expected = greedy(ids, steps)
        assert list(got.tokens) == expected
        assert got.finish == ("stop" if EOS in expected else "length")


def test_generation_stops_at_the_end_of_sequence_token(engine, monkeypatch):
    ids = prompts(1)[0]
    expected = greedy(ids, 12)
    stop = expected[4]
    config = engine.config
    monkeypatch.setattr(engine, "config", type(config)(**{**vars(config), "eos_token_ids": (stop,)}))
    (got,) = engine.generate([ids], max_new_tokens=12).completions()
    assert list(got.tokens) == expected[: expected.index(stop) + 1]
    assert got.finish == "stop"


def test_text_in_text_out(engine):
    (got,) = engine.generate("héllo", max_new_tokens=6).completions()
    ids = engine.text.encode("héllo")
    assert list(got.tokens) == greedy(ids, 6)
    assert got.text == engine.text.tokenizer.decode([t for t in got.tokens if t != EOS])
    two = engine.generate(["héllo", "x"], max_new_tokens=6).completions()
    assert two[0].tokens == got.tokens


def test_tokens_stream_one_by_one(engine):
    generation = engine.generate(prompts(2), max_new_tokens=4)
    tokens = list(generation)
    assert [t.prompt for t in tokens[:4]] == [0, 1, 0, 1]
    assert [t.finish for t in tokens].count(None) == len(tokens) - 2
    assert [c.tokens for c in generation.completions()] == [
        tuple(t.id for t in tokens if t.prompt == i) for i in range(2)
    ]


def test_the_same_seed_gives_the_same_tokens_and_a_batch_does_not_change_them(engine):
    sampling = Sampling(temperature=30.0, top_k=40, top_p=0.95, seed=7)
    many = prompts(3)

    def run(which, s):
        return [c.tokens for c in engine.generate(which, 20, s).completions()]

    try:
        first = run(many, sampling)
    except Exception as e:  # the toy's NaN token may be drawn: then this seed says nothing
        raise AssertionError("choose another seed") from e
    assert run(many, sampling) == first
    assert run(many[:1], sampling) == first[:1]
    assert run(many, Sampling(temperature=30.0, top_k=40, top_p=0.95, seed=8)) != first


def test_cancelling_frees_the_session(engine, monkeypatch):
    opened = []
    real = engine.session
    monkeypatch.setattr(engine, "session", lambda *a: opened.append(real(*a)) or opened[-1])
    with engine.generate(prompts(2), max_new_tokens=50) as generation:
        next(generation)
    with pytest.raises(UsageError, match="closed"):
        opened[0].length(0)
    assert list(generation) == []


def test_generation_ends_at_the_last_position(engine):
    rng = np.random.default_rng(9)
    ids = rng.integers(NAN + 1, 256, MAX_SEQ - 2).tolist()
    (got,) = engine.generate([ids], max_new_tokens=100).completions()
    assert list(got.tokens) == greedy(ids, 3)  # two can still be cached, the third needs no place
    assert len(got.tokens) == 3
    assert got.finish == "length"
    with pytest.raises(UsageError, match="tokens, the engine takes"):
        engine.generate([[20] * (MAX_SEQ + 1)])


@pytest.mark.parametrize("bad", [[], [[]], [""], "", [[-1]], [[10**6]], [None], [[1.5]], [[20], "x", None]], ids=str)
def test_bad_prompts_are_refused_before_anything_runs(engine, bad):
    with pytest.raises(UsageError):
        engine.generate(bad)


def test_bad_counts_are_refused(engine):
    with pytest.raises(UsageError):
        engine.generate([[20]], max_new_tokens=0)


def test_text_without_a_tokenizer_is_a_usage_error(tmp_path):
    toy_engine.build(tmp_path / "e", tokenizer=False)
    with Engine.load(tmp_path / "e", threads=1) as e:
        with pytest.raises(UsageError, match=r"tokenizer\.json"):
            e.generate("hello")
        (got,) = e.generate([[20]], max_new_tokens=2).completions()
        assert got.text == ""
