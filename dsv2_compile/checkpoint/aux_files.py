"""The small files beside the weights: which there are, and that none can surprise who reads them later."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv2_compile.checkpoint.fields import short
from dsv2_compile.checkpoint.files import FileError, read_file
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine import strictjson
from dsv2_compile.errors import ModelError

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
NAMES = (
    CONFIG,
    GENERATION,
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_MAX_BYTES = 4 << 20
_MAX_TOKENIZER_BYTES = 32 << 20
_REMEDY = "Take the file from the published model again, or remove it: without it only token ids work."


@dataclass(frozen=True)
class AuxFiles:
    """``names``: those of NAMES that are there. ``json``: the parsed ones, config.json and tokenizer.json apart."""

    names: tuple[str, ...]
    json: dict[str, Any]


def read(root: Path, name: str) -> bytes:
    """A small file of the checkpoint; ModelError if it cannot be read."""
    try:
        return read_file(root, name, _MAX_TOKENIZER_BYTES if name == TOKENIZER else _MAX_BYTES)
    except FileError as e:
        raise ModelError(f"{name} cannot be read: {e}.", "Take the file from the published model again.") from None


def check(root: Path, names: Collection[str], config: ModelConfig) -> AuxFiles:
    """ModelError naming the file that is malformed or does not fit ``config``."""
    present = tuple(name for name in NAMES if name in names)
    parsed = {}
    for name in present:
        data = read(root, name)
        if name == TOKENIZER:
            _check_tokenizer(data, config)
        elif name.endswith(".json") and name != CONFIG:
            parsed[name] = _json(name, data)
    return AuxFiles(present, parsed)


def _json(name: str, data: bytes) -> Any:
    try:
        return strictjson.loads(data, _MAX_BYTES)
    except strictjson.JsonError as e:
        raise ModelError(f"{name} is malformed: {e}.", _REMEDY) from None


def _check_tokenizer(data: bytes, config: ModelConfig) -> None:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the library raises plain Exception, and PanicException from BaseException
        raise ModelError(f"{TOKENIZER} is malformed: {short(str(e), 200)}.", _REMEDY) from None
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= config.vocab_size:
        raise ModelError(
            f"{TOKENIZER} has token {highest}, the embedding has vocab_size {config.vocab_size} rows.",
            "Take tokenizer and weights from the same model.",
        )
