"""The trained tokenizer: any text survives it, and transformers reads the files as the runtime does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2_compile.checkpoint.presets import PRESETS, configure
from dsv2_compile.checkpoint.synth import SynthRequest, synth
from dsv2_compile.checkpoint.tokenizer import BOS, EOS, tokenizer_files
from dsv2_compile.runtime.text import Text


def tokenizers_of(directory: Path):
    """What transformers and what the runtime make of the files in ``directory``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory), Text(directory, PRESETS["tiny"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    synth(SynthRequest(directory / "m", overrides={"layers": 1}))
    return tokenizers_of(directory / "m")


TEXTS = st.one_of(
    st.text(max_size=60), st.sampled_from(["", " ", "\n\n", "def main():\n    return 1", "1234567", "🙂 naïve"])
)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_any_text_survives_and_transformers_agrees(pair, text):
    theirs, ours = pair
    ids = ours.encode(text)
    assert theirs(text)["input_ids"] == ids and ids[0] == PRESETS["tiny"].bos_token_id
    assert max(ids) < PRESETS["tiny"].vocab_size
    assert ours.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_tokens_are_worth_having(pair):
    theirs, ours = pair
    text = "The compiler reads a description of the model and writes a faster one."
    assert len(ours.encode(text)) < len(text) / 3
    assert (theirs.bos_token, theirs.eos_token) == (BOS, EOS)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (2046, 2047)
    assert ours.encode(BOS + "x" + EOS)[-1] == 2047, "special tokens are recognised in text"
    assert all(ours.tokenizer.id_to_token(i) is not None for i in range(2048)), "every id of the tiny model has a text"


def test_published_vocabulary_has_its_special_tokens_in_place(tmp_path):
    from tokenizers import Tokenizer

    for name, contents in tokenizer_files(PRESETS["lite"]).items():
        (tmp_path / name).write_bytes(contents)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)) == (100000, 100001)
    theirs, _ = tokenizers_of(tmp_path)
    assert theirs("hello")["input_ids"] == tokenizer.encode("hello").ids
    assert tokenizer.decode(tokenizer.encode("héllo").ids) == "héllo"


def test_without_bos_nothing_is_prepended(tmp_path):
    for name, contents in tokenizer_files(configure("tiny", {"bos_token_id": None})).items():
        (tmp_path / name).write_bytes(contents)
    theirs, ours = tokenizers_of(tmp_path)
    assert theirs("a b")["input_ids"] == ours.encode("a b") and len(ours.encode("a")) == 1
