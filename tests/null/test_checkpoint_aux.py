"""Cases 14 and 15: tokenizer and settings that are malformed, do not fit, or are made to exhaust the reader."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordLevel

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.errors import ModelError
from tests.checkpoints import TINY, join, tiny_tensors, write

VOCAB = TINY["vocab_size"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "m", tiny_tensors())


def refused(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as e:
        Checkpoint.open(folder)
    assert e.value.exit_code == 3
    assert e.value.cause.isprintable() and len(e.value.cause) < 400
    return e.value


def word_level(highest: int) -> str:
    return Tokenizer(WordLevel({"a": 0, "b": highest}, unk_token="a")).to_str()


class TestTokenizer:
    """Case 14."""

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "{}",
            "[]",
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
            '{"version": "1.0", "model": {"type": "Nothing"}}',
            word_level(3)[:-20],
            "\x00" * 50,
            word_level(3).replace('"b":3', '"b":-3'),
            word_level(3).replace('"b":3', '"b":99999999999999999999'),
        ],
    )
    def test_malformed(self, text, folder):
        (folder / "tokenizer.json").write_text(text)
        assert refused(folder).cause.startswith("tokenizer.json is malformed: ")

    @pytest.mark.parametrize(
        "text", [word_level(VOCAB), word_level(VOCAB + 1000), word_level(3).replace('"b":3', '"b":4294967295')]
    )
    def test_more_ids_than_rows(self, text, folder):
        (folder / "tokenizer.json").write_text(text)
        assert f"the embedding has vocab_size {VOCAB} rows" in refused(folder).cause

    def test_an_added_token_too_many(self, folder):
        tokenizer = Tokenizer(BPE({chr(97 + i): i for i in range(VOCAB)}, []))
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        Checkpoint.open(folder)
        tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        assert f"has token {VOCAB}, " in refused(folder).cause

    def test_fits(self, folder):
        (folder / "tokenizer.json").write_text(word_level(VOCAB - 1))
        assert [p.name for p in Checkpoint.open(folder).aux_files] == ["config.json", "tokenizer.json"]

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
    @pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "{", '{"a": NaN}'])
    def test_settings(self, name, text, folder):
        (folder / name).write_text(text)
        assert refused(folder).cause.startswith(f"{name} is malformed: ")

    @pytest.mark.parametrize(
        "text", ["[]", "null", '{"eos_token_id": 17}', '{"eos_token_id": "1"}', '{"eos_token_id": [-1]}']
    )
    def test_generation(self, text, folder):
        (folder / "generation_config.json").write_text(text)
        assert "generation_config.json" in refused(folder).cause

    @pytest.mark.parametrize("name, size", [("tokenizer.json", 32 << 20), ("tokenizer_config.json", 4 << 20)])
    def test_size(self, name, size, folder):
        text = word_level(3)
        (folder / name).write_text(text + " " * (size - len(text)))
        Checkpoint.open(folder)
        (folder / name).write_text(text + " " * (size + 1 - len(text)))
        assert refused(folder).cause == f"{name} cannot be read: {size + 1} bytes, the limit is {size}."

    @pytest.mark.parametrize("kind", ["Exception", "BaseException", "KeyboardInterrupt"])
    def test_panics_of_the_library(self, kind, folder, monkeypatch):
        """Its panics are no Exception; they are a bad file all the same, an interrupt is not."""
        panic = type("PanicException", (getattr(builtins, kind),), {})

        class Panicking:
            @staticmethod
            def from_buffer(data: bytes) -> None:
                raise panic("called `Option::unwrap()`\non a `None` value")

        monkeypatch.setattr(tokenizers, "Tokenizer", Panicking)
        (folder / "tokenizer.json").write_text("{}")
        if kind == "KeyboardInterrupt":
            with pytest.raises(panic):
                Checkpoint.open(folder)
        else:
            assert "unwrap" in refused(folder).cause

    def test_not_a_file(self, folder):
        (folder / "tokenizer.json").mkdir()
        assert refused(folder).cause == "tokenizer.json cannot be read: not a regular file."


PROBE = """
import json, sys, time
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.errors import ModelError
import torch, tokenizers
out = []
for folder in sys.argv[1:]:
    start = time.monotonic()
    try:
        Checkpoint.open(folder)
        code = 0
    except ModelError as e:
        code = e.exit_code
    seconds = time.monotonic() - start
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    out.append([code, seconds, int(peak) << 10])
print(json.dumps(out))
"""

DEEP = 1_000_000
HOSTILE = {
    "10^6 deep lists": b"[" * DEEP + b"]" * DEEP,
    "10^6 deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "10^6 deep, never closed": b"[" * DEEP,
    "10^6 entries": b"{" + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}",
    "10^6 times the same key": b"{" + b",".join([b'"a":1'] * 1_000_000) + b"}",
    "a duplicate key": b'{"model_type": "deepseek_v2", "model_type": "deepseek_v2"}',
    "1 GiB": None,
    "a string of 30 MB": b'{"a": "' + b"x" * 30_000_000 + b'"}',
}
PLACES = ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json", "header"]


@pytest.mark.parametrize("place", PLACES)
def test_hostile_json(place, tmp_path):
    """Case 15: refused in < 5 s each, and no process grows past 500 MB. All of a place in one process."""
    folders = []
    for i, data in enumerate(HOSTILE.values()):
        folder = write(tmp_path / str(i), tiny_tensors(), shards=2 if "index" in place else 1)
        path = folder / ("model.safetensors" if place == "header" else place)
        if data is None:
            with open(path, "wb") as f:  # a hole: no disk is used
                f.write((1 << 30).to_bytes(8, "little") if place == "header" else b'{"')
                f.truncate(1 << 30)
        else:
            path.write_bytes(join(data, b"") if place == "header" else data)
        folders.append(str(folder))
    run = subprocess.run([sys.executable, "-c", PROBE, *folders], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for name, (code, seconds, peak) in zip(HOSTILE, json.loads(run.stdout), strict=True):
        assert code == 3, f"{name}: accepted"
        assert seconds < 5, f"{name}: {seconds:.1f} s"
        assert peak < 500e6, f"{name}: {peak / 1e6:.0f} MB"
