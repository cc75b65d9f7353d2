"""The C++ runtime's tokenizer against the tokenizers library, which the Python one uses: ids, text and streams."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import random
import threading
from ctypes import byref, c_int32, c_int64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.checkpoint.tokenizer import BOS, tokenizer_files
from dsv2_compile.runtime.text import Text, TextStream
from tests import cpp_build, cpp_text, toy_engine
from tests.cpp_abi import USAGE, AbiError, Library
from tests.cpp_text import (
    BOS_ID,
    CHARACTERS,
    NASTY,
    PRE_TOKENIZERS,
    VOCAB,
    CppText,
    byte_level,
    digits,
    engine,
    random_text,
    sequence,
    split,
)


@pytest.fixture(scope="module")
def library() -> Library:
    return cpp_text.library()


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return cpp_text.trained()


Pairs = dict[str, tuple[Text, CppText]]


@pytest.fixture(scope="module")
def pairs(library, base, tmp_path_factory) -> Pairs:
    """Each tokenizer in Python and in C++."""
    root = tmp_path_factory.mktemp("text")
    tiny = PRESETS["tiny"]
    synth = {k: json.loads(v) for k, v in tokenizer_files(tiny).items()}
    toy = json.loads(toy_engine.tokenizer_json())
    few_merges = base["model"] | {"merges": base["model"]["merges"][:1000], "ignore_merges": True}
    old_merges = base["model"] | {"merges": ["#version: 0.2", *map(" ".join, base["model"]["merges"])]}
    roots = {
        "synth": engine(root / "synth", *synth.values(), tiny.vocab_size, tiny.bos_token_id),
        "toy": engine(root / "toy", toy, None, toy_engine.VOCAB, 257),
        "bos asked for": engine(root / "bos", base, {"add_bos_token": True}),
        "ignore_merges": engine(root / "ignore", base | {"model": few_merges}),
    }
    for seed in (cpp_build.SOURCE / "tests" / "corpus" / "text").iterdir():
        roots[f"corpus: {seed.name}"] = engine(root / f"corpus-{seed.name}", seed.read_bytes())
    for name, steps in PRE_TOKENIZERS.items():
        roots[name] = engine(root / name, base | {"pre_tokenizer": steps, "model": old_merges})
    out = {}
    for name, path in roots.items():
        config = dataclasses.replace(toy_engine.CONFIG, bos_token_id=tiny.bos_token_id if name == "synth" else BOS_ID)
        out[name] = Text(path, config), CppText(library, path)
    return out


def same(pairs: Pairs, text: str) -> None:
    for name, (python, cpp) in pairs.items():
        ids = python.encode(text)
        assert cpp.encode(text) == ids, name
        assert cpp.decode(ids) == python.tokenizer.decode(ids, skip_special_tokens=True), name


def test_nasty_texts(pairs):
    for text in NASTY:
        same(pairs, text)
    assert pairs["bos asked for"][1].encode("a")[0] == BOS_ID != pairs["published"][1].encode("a")[0]
    assert pairs["bos asked for"][1].encode(BOS) == [BOS_ID]
    assert len(pairs["published"][1].encode("a description of the model")) < 8, "merges are done"


def test_random_texts(pairs):
    rng = random.Random(1)
    for _ in range(500):
        same(pairs, random_text(rng))


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60))
def test_any_text(pairs, text):
    same(pairs, text)


CLASSES = ("\\s", "\\d", "\\S", "\\p{L}", "\\p{N}", "\\p{P}", "\\P{Lu}", "[^\\s\\p{S}]")


@pytest.mark.parametrize("pattern", CLASSES)
def test_classes_have_the_same_members(library, tmp_path, pattern):
    """What the pattern matches is removed: the ids are what it leaves of all characters."""
    all_characters(library, tmp_path, split(pattern, "Removed"))


@pytest.mark.parametrize("individual", (False, True))
def test_digits_are_the_same(library, tmp_path, individual):
    """The last character of every piece is removed, which shows where pieces end."""
    all_characters(library, tmp_path, digits(individual), split("[^\n]$", "Removed"))


def all_characters(library: Library, tmp_path: Path, *steps: dict[str, Any]) -> None:
    tokenizer = json.loads(toy_engine.tokenizer_json()) | {"pre_tokenizer": sequence(*steps, byte_level())}
    root = engine(tmp_path / "e", tokenizer)
    everything = "".join(c for name in CHARACTERS for c in CHARACTERS[name])
    ids = Text(root, toy_engine.CONFIG).encode(everything)
    assert CppText(library, root).encode(everything) == ids and 0 < len(ids) < len(everything.encode())


def test_streams_give_the_same_text_with_every_token(pairs):
    rng = random.Random(2)
    for name, (python, cpp) in pairs.items():
        runs = [python.encode(random_text(rng)) for _ in range(30)]
        runs += [[rng.randrange(VOCAB) for _ in range(60)] for _ in range(20)]  # bytes in no order, ids without a token
        runs += [[rng.choice((*range(180, 256), BOS_ID)) for _ in range(60)] for _ in range(20)]
        for ids in runs:
            theirs, ours = TextStream(python.tokenizer), cpp.stream()
            assert [ours.push(t) for t in ids] == [theirs.push(t) for t in ids], (name, ids)
            assert ours.end() == theirs.end() and ours.end() == ""
            assert cpp.decode(ids) == python.tokenizer.decode(ids, skip_special_tokens=True)


def test_threads_share_a_tokenizer(pairs):
    python, cpp = pairs["published"]
    texts = [random_text(random.Random(i)) for i in range(100)]
    expected = [python.encode(t) for t in texts]
    found: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: found.append([cpp.encode(t) for t in texts])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_sizes_and_handles(library, base, tmp_path):
    text = CppText(library, engine(tmp_path / "e", base))
    ids, count = (c_int32 * 2)(-7, -7), c_int64()
    library.call("text_encode", text.handle, b"1 2 3", 5, ids, 1, byref(count))
    assert (count.value, ids[0], ids[1]) == (len(text.encode("1 2 3")), text.encode("1")[0], -7)
    library.call("text_encode", text.handle, None, 0, None, 0, byref(count))
    assert count.value == 0
    out = ctypes.create_string_buffer(b"....")
    library.call("text_decode", text.handle, (c_int32 * 2)(*text.encode("中")), 1, out, 2, byref(count))
    assert count.value == len("中".encode()) and out.raw[2:] == b"..\0"

    stream = text.stream()
    with pytest.raises(AbiError, match="Token -1") as e:
        stream.push(-1)
    assert e.value.code == USAGE and stream.push(text.encode("a")[0]) == "a"
    for arguments in (
        (b"x", 1, None, 1, byref(count)),
        (None, 1, ids, 2, byref(count)),
        (b"x", -1, ids, 2, byref(count)),
    ):
        with pytest.raises(AbiError) as e:
            library.call("text_encode", text.handle, *arguments)
        assert e.value.code == USAGE
    library.call("text_close", text.handle)
    for call in (lambda: text.encode("a"), lambda: stream.push(1), text.stream, lambda: text.decode([1])):
        with pytest.raises(AbiError) as e:
            call()
        assert e.value.code == USAGE


@pytest.mark.parametrize("data", (b"\x80", b"a\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\xe4\xb8", b"\xff"))
def test_text_that_is_not_utf8_is_refused(pairs, data):
    with pytest.raises(AbiError, match="not UTF-8") as e:
        pairs["published"][1].encode(data)
    assert e.value.code == USAGE
