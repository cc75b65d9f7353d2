"""Text to tokens and back, with the tokenizer files of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsv2_compile.config import ModelConfig
from dsv2_compile.engine import strictjson
from dsv2_compile.errors import ModelError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_WINDOW = 16
_CONTEXT = 4


class Text:
    """The tokenizer of an engine directory. UsageError if it has none, ModelError if it is malformed."""

    def __init__(self, root: Path, config: ModelConfig) -> None:
        from tokenizers import Tokenizer

        path, settings = root / "tokenizer.json", root / "tokenizer_config.json"
        if not path.exists():
            raise UsageError("The engine has no tokenizer.json.", "Pass token ids instead of text.")
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(path))
            options = strictjson.loads(settings.read_bytes(), 64 << 20) if settings.exists() else {}
        except Exception as e:  # the tokenizers library raises plain Exception
            raise ModelError(f"The tokenizer files are malformed: {str(e)[:200]}", "Check tokenizer.json.") from e
        # DeepSeek-V2 asks for the bos token here, not in tokenizer.json
        add_bos = isinstance(options, dict) and options.get("add_bos_token") is True
        self._bos = config.bos_token_id if add_bos else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids if self._bos is None or ids[:1] == [self._bos] else [self._bos, *ids]


class TextStream:
    """Decodes a growing sequence of tokens; never gives out part of a character.

    Bytes of an unfinished UTF-8 character decode to up to three trailing U+FFFD, which are held back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0  # characters of the decoded window already returned

    def push(self, token: int) -> str:
        """The text that ``token`` completes; may be empty."""
        self._ids.append(token)
        text = self._decode()
        held = min(3, len(text) - len(text.rstrip(_REPLACEMENT)))
        out = text[self._given : len(text) - held]
        self._given += len(out)
        if not held and len(self._ids) > _WINDOW:
            # some tokens stay as context: the first of a decoded run may lose its leading space
            del self._ids[:-_CONTEXT]
            self._given = len(self._decode())
        return out

    def end(self) -> str:
        """What was held back: U+FFFD for a character that never came to its end."""
        out = self._decode()[self._given :]
        self._given += len(out)
        return out

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text
