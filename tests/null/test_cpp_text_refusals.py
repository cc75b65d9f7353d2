"""What the C++ runtime's tokenizer refuses, and how it says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsv2_compile.checkpoint.tokenizer import BOS
from tests import cpp_text
from tests.cpp_abi import INTEGRITY, MODEL, USAGE, AbiError, Library
from tests.cpp_text import CppText, byte_level, digits, engine, sequence, split


@pytest.fixture(scope="module")
def library() -> Library:
    return cpp_text.library()


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return cpp_text.trained()


def edited(value: Any, path: str, new: Any) -> Any:
    """``value`` with ``new`` at a dotted path."""
    key, _, rest = path.partition(".")
    index: Any = int(key) if isinstance(value, list) else key
    out = value.copy()
    out[index] = edited(value[index], rest, new) if rest else new
    return out


def template(*pieces: Any) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": [], "special_tokens": {}}


TEXT_PIECE = {"Sequence": {"id": "A", "type_id": 0}}
UNSUPPORTED = (
    ("version", "2.0", "version"),
    ("truncation", {"max_length": 5}, "truncation"),
    ("padding", {"strategy": "BatchLongest"}, "padding"),
    ("extra", 1, "extra"),
    ("normalizer", {"type": "NFKC"}, "normalizer 'NFKC'"),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "normalizer 'NFC'"),
    ("pre_tokenizer", None, "ByteLevel"),
    ("pre_tokenizer", {"type": "Whitespace"}, "pre-tokenizer 'Whitespace'"),
    ("pre_tokenizer", sequence(digits(True)), "ByteLevel"),
    ("pre_tokenizer", sequence(byte_level(), digits(True)), "after ByteLevel"),
    ("pre_tokenizer", sequence(split("\\w+"), byte_level()), "an escape"),
    ("pre_tokenizer", sequence(split("(?i:a)"), byte_level()), "group"),
    ("pre_tokenizer", sequence(split("", kind="String"), byte_level()), "empty string"),
    ("decoder", {"type": "Metaspace"}, "decoder 'Metaspace'"),
    ("post_processor", {"type": "RobertaProcessing"}, "post-processor 'RobertaProcessing'"),
    ("post_processor", template(TEXT_PIECE, TEXT_PIECE), "repeats"),
    ("post_processor", template(), "drops"),
    ("model.type", "Unigram", "model 'Unigram'"),
    ("model.dropout", 0.1, "dropout"),
    ("model.unk_token", "a", "unk_token"),
    ("model.byte_fallback", True, "byte_fallback"),
    ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
    ("model.vocab", {"a": 0}, "no token for byte 0"),
    ("added_tokens.0.content", "é" * 200, "added token of 400"),
    *((f"added_tokens.0.{flag}", True, flag) for flag in ("single_word", "lstrip", "rstrip")),
)
MALFORMED = (
    ("model.vocab.a", 8192, "token 8192"),
    ("model.vocab.a", -1, "token -1"),
    ("model.vocab.a", 1, "two tokens"),
    ("model.vocab.a", "1", "integer"),
    ("model.merges.0", ["a", "nowhere"], "nowhere"),
    ("model.merges.0", ["a"], "merge of 1"),
    ("model.merges", ["a b c"], "a b c"),
    ("added_tokens.0.id", 5001, "id 5001"),
    ("added_tokens.1.content", BOS, "added token"),
    ("added_tokens.0.content", "", "added token"),
    ("pre_tokenizer", sequence(split("a", "Sideways"), byte_level()), "Sideways"),
    ("post_processor", template({"SpecialToken": {"id": "x"}}, TEXT_PIECE), "x"),
)


@pytest.mark.parametrize(("path", "value", "named"), UNSUPPORTED + MALFORMED)
def test_what_is_not_done_is_refused_by_name(library, base, tmp_path, path, value, named):
    if (path, value, named) in UNSUPPORTED:
        named = f"which this runtime does not do|{named}"
    with pytest.raises(AbiError) as e:
        CppText(library, engine(tmp_path / "e", edited(base, path, value)))
    assert e.value.code == MODEL
    assert all(part in str(e.value) for part in named.split("|"))


def test_files_that_cannot_be_used(library, base, tmp_path):
    good = json.dumps(base).encode()
    for i, (tokenizer, options, code) in enumerate(
        (
            (None, None, USAGE),
            (good[:-1], None, MODEL),
            (b"[]", None, MODEL),
            (b"", None, MODEL),
            (b"[" * 100_000, None, MODEL),
            (good, b"{", MODEL),
        )
    ):
        root = engine(tmp_path / str(i), tokenizer, options)
        with pytest.raises(AbiError) as e:
            CppText(library, root)
        assert e.value.code == code, (i, str(e.value))
    changed = engine(tmp_path / "changed", good)
    (changed / "tokenizer.json").write_bytes(good.replace(b'"a"', b'"b"', 1))
    with pytest.raises(AbiError) as e:
        CppText(library, changed)
    assert e.value.code == INTEGRITY
