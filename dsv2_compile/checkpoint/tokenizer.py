"""A byte-level BPE tokenizer for a made-up checkpoint, in the files that published ones have."""

from __future__ import annotations

import json
from typing import Any

from dsv2_compile.checkpoint.corpus import TEXT
from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import UsageError

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_BYTES = 256


def tokenizer_files(config: ModelConfig) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json for ``config``: file name -> contents, the same every time.

    Any text survives encoding and decoding. Every id is below the vocabulary's size; where the
    training text has too few pairs left to merge, the ids after the last one mean nothing.
    UsageError if the vocabulary has no room for 256 bytes and the special tokens, or two of these share an id.
    """
    special = _special(config)
    if len(set(special.values())) < len(special):
        raise UsageError("Two special tokens have one id.", "Give bos_token_id and eos_token_id different values.")
    room = config.vocab_size - len(special)
    if room < _BYTES:
        raise UsageError(
            f"A vocabulary of {config.vocab_size} has no room for 256 bytes and {len(special)} special tokens.",
            f"Use a vocab_size of at least {_BYTES + len(special)}.",
        )
    model = _trained(room)
    ids = iter(sorted(set(range(config.vocab_size)) - set(special.values())))
    ordinary = sorted(model["model"]["vocab"], key=model["model"]["vocab"].__getitem__)
    model["model"]["vocab"] = {token: next(ids) for token in ordinary} | special
    model["added_tokens"] = [_added(token, i) for token, i in sorted(special.items(), key=lambda item: item[1])]
    if BOS in special:
        model["post_processor"] = _prepend(BOS, special[BOS])
    return {"tokenizer.json": _json(model), "tokenizer_config.json": _json(_settings(config))}


def _special(config: ModelConfig) -> dict[str, int]:
    found = {} if config.bos_token_id is None else {BOS: config.bos_token_id}
    for n, i in enumerate(config.eos_token_ids):
        found[EOS if n == 0 else f"<｜end▁{n}｜>"] = i
    return found


def _trained(size: int) -> dict[str, Any]:
    """A tokenizer.json of at most ``size`` tokens, bytes first, without special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())
    return model


def _added(token: str, index: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **flags, "special": True}


def _prepend(token: str, index: int) -> dict[str, Any]:
    """The post-processor that puts ``token`` before a text, and before each of a pair of texts."""
    start = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, start, second],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def _settings(config: ModelConfig) -> dict[str, Any]:
    bos = None if config.bos_token_id is None else BOS
    eos = EOS if config.eos_token_ids else None
    return {
        "add_bos_token": bos is not None,
        "add_eos_token": False,
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": config.max_position_embeddings,
        "pad_token": eos,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
