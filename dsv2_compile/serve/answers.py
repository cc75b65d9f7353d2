"""Answers in OpenAI's words: whole ones and chunks of a stream, of completions and of chats."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from dsv2_compile.serve.running import Delta

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Words:
    """Of one request. ``token_ids``: a choice has them too."""

    model: str
    chat: bool
    token_ids: bool
    include_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    mark: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, choices: list[Delta], usage: dict[str, int]) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [self._choice(c) for c in choices], "usage": usage}

    def opening(self, count: int) -> bytes:
        """Before the first chunks: who speaks, of each of ``count`` answers; nothing where it is no chat."""
        role = {"role": "assistant", "content": ""}
        starts = ({"index": i, "delta": role, "logprobs": None, "finish_reason": None} for i in range(count))
        return b"".join(event(self._chunk([start])) for start in starts) if self.chat else b""

    def chunk(self, delta: Delta) -> bytes:
        return event(self._chunk([self._part(delta)]))

    def closing(self, usage: dict[str, int]) -> bytes:
        return (event({**self._chunk([]), "usage": usage}) if self.include_usage else b"") + DONE

    def _head(self, kind: str) -> dict[str, Any]:
        start = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{start}-{self.mark}", "object": kind, "created": self.created, "model": self.model}

    def _choice(self, c: Delta) -> dict[str, Any]:
        said: dict[str, Any] = {"text": c.text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": c.text, "refusal": None}}
        return {"index": c.index, **said, "logprobs": None, "finish_reason": c.finish, **self._ids(c)}

    def _part(self, c: Delta) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": c.text} if c.text else {}} if self.chat else {"text": c.text}
        return {"index": c.index, **said, "logprobs": None, "finish_reason": c.finish, **self._ids(c)}

    def _ids(self, c: Delta) -> dict[str, Any]:
        return {"token_ids": list(c.token_ids)} if self.token_ids else {}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, **({"usage": None} if self.include_usage else {})}


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    total = prompt_tokens + new_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens, "total_tokens": total}


def event(value: dict[str, Any]) -> bytes:
    """``value`` as a server-sent event. JSON has no line breaks in it, so one line is enough."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
