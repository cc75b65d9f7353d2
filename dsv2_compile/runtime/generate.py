"""Generation: prompts in, a stream of tokens out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import arguments
from dsv2_compile.runtime.batch import Batch
from dsv2_compile.runtime.requests import Event, Finish, Limits, Request
from dsv2_compile.runtime.sampling import Sampling
from dsv2_compile.runtime.text import TextStream

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

Prompts = str | Sequence[str] | Sequence[Sequence[int]]

NO_TOKEN = -1


@dataclass(frozen=True)
class Token:
    """One step of one prompt: its number in `generate`, in a scheduler the id of its submission.

    ``text`` is what this token completes ("" while a character is unfinished, or without a tokenizer).
    ``finish`` is set on a prompt's last token: "stop" for an end-of-sequence token, whose text is what
    was still held back, or "length". In a scheduler a prompt may also end without a token, by one whose ``id`` is
    `NO_TOKEN`: "cancelled", or "failed" with its ``error``.
    """

    prompt: int
    id: int
    text: str
    finish: Finish | None
    error: Exception | None = None


@dataclass(frozen=True)
class Completion:
    """All of one prompt's tokens, the end-of-sequence token included."""

    tokens: tuple[int, ...]
    text: str
    finish: str


class Generation:
    """An iterator of `Token`. `completions` runs it to its end; `close` stops it and frees the session."""

    def __init__(self, tokens: Iterator[Token], count: int) -> None:
        self._tokens, self._count = tokens, count
        self._seen: list[list[Token]] = [[] for _ in range(count)]

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        token = next(self._tokens)
        self._seen[token.prompt].append(token)
        return token

    def completions(self) -> list[Completion]:
        """One per prompt, in their order, tokens already taken from the iterator included."""
        for _ in self:
            pass
        return [
            Completion(tuple(t.id for t in seen), "".join(t.text for t in seen), seen[-1].finish or "length")
            for seen in self._seen
        ]

    def close(self) -> None:
        self._tokens.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def start(engine: Engine, prompts: Prompts, max_new_tokens: int, sampling: Sampling) -> Generation:
    """Checks everything, then a `Generation`; work begins with its first step."""
    many: Sequence[Any] = [prompts] if isinstance(prompts, str) else prompts
    if not len(many):
        raise UsageError("There is no prompt.", "Pass at least one.")
    requests = [Request(encode(engine, p), max_new_tokens, sampling, stream=i) for i, p in enumerate(many)]
    limits = Limits.of(engine, engine.max_seq_len)
    for request in requests:
        limits.check(request)
    return Generation(_steps(engine, requests), len(requests))


def encode(engine: Engine, prompt: Any) -> list[int]:
    """The ids of a text, or of a sequence of ids; UsageError for anything else and for an empty one."""
    ids: list[int] = arguments.integers(
        "prompt", engine.text.encode(prompt) if isinstance(prompt, str) else prompt, 1
    ).tolist()
    return ids


def text_stream(engine: Engine) -> TextStream | None:
    return TextStream(engine.text.tokenizer) if engine.has_text else None


def token(event: Event, stream: TextStream | None) -> Token:
    """``event`` with the text that it completes."""
    if event.token is None:
        return Token(event.request, NO_TOKEN, "", event.finish, event.error)
    text = "" if stream is None or event.finish == "stop" else stream.push(event.token)
    if stream and event.finish:
        text += stream.end()
    return Token(event.request, event.token, text, event.finish)


def _steps(engine: Engine, requests: list[Request]) -> Iterator[Token]:
    slots = min(len(requests), engine.max_batch_size)
    longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
    positions = min(longest, engine.max_seq_len)
    streams = [text_stream(engine) for _ in requests]
    with engine.session(slots, positions) as session:
        batch = Batch(session, Limits.of(engine, positions), engine.config.eos_token_ids)
        for i, request in enumerate(requests):
            batch.submit(i, request)
        while batch.busy:
            for event in batch.step():
                if event.error:
                    raise event.error
                yield token(event, streams[event.request])
