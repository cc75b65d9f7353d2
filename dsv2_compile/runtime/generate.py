"""Generation: prompts in, a stream of tokens out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import arguments
from dsv2_compile.runtime.arguments import Ints
from dsv2_compile.runtime.sampling import Draw, Sampling
from dsv2_compile.runtime.text import Text, TextStream

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

Prompts = str | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Token:
    """One step of one prompt.

    ``text`` is what this token completes ("" while a character is unfinished, or without a tokenizer).
    ``finish`` is set on a prompt's last token: "stop" for an end-of-sequence token, whose text is what
    was still held back, or "length".
    """

    prompt: int
    id: int
    text: str
    finish: str | None


@dataclass(frozen=True)
class Completion:
    """All of one prompt's tokens, the end-of-sequence token included."""

    tokens: tuple[int, ...]
    text: str
    finish: str


@dataclass
class _Sequence:
    prompt: int
    ids: list[int]
    rng: np.random.Generator
    stream: TextStream | None
    made: int = 0
    last: int = 0


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
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}.", "Ask for at least one token.")
    many: Sequence[str] | Sequence[Sequence[int]] = [prompts] if isinstance(prompts, str) else prompts
    if not len(many):
        raise UsageError("There is no prompt.", "Pass at least one.")
    text = engine.text if isinstance(many[0], str) or engine.has_text else None
    sequences = [
        _Sequence(i, _ids(engine, p, text), sampling.stream(i), TextStream(text.tokenizer) if text else None)
        for i, p in enumerate(many)
    ]
    return Generation(_steps(engine, sequences, max_new_tokens, sampling), len(sequences))


def _ids(engine: Engine, prompt: Any, text: Text | None) -> list[int]:
    encoded = text.encode(prompt) if isinstance(prompt, str) and text else prompt
    ids: list[int] = arguments.integers("prompt", encoded, 1).tolist()
    if len(ids) > engine.max_seq_len:
        raise UsageError(
            f"A prompt has {len(ids)} tokens, the engine takes {engine.max_seq_len}.",
            "Shorten the prompt, or rebuild the engine with a larger --max-seq-len.",
        )
    arguments.vocabulary(np.array(ids), engine.config.vocab_size)
    return ids


def _steps(engine: Engine, sequences: list[_Sequence], max_new: int, sampling: Sampling) -> Iterator[Token]:
    """Slots are filled from the waiting prompts as they become free; every live one decodes each round."""
    waiting = deque(sequences)
    slots = min(len(sequences), engine.max_batch_size)
    positions = min(max(len(s.ids) for s in sequences) + max_new, engine.max_seq_len)
    live: dict[int, _Sequence] = {}
    with engine.session(slots, positions) as session:
        while waiting or live:
            if live:
                order = sorted(live)
                tokens = session.step([live[slot].last for slot in order], _draws(live, order, sampling), order)
                yield from _advance(engine, live, order, tokens, max_new)
            idle = [slot for slot in range(slots) if slot not in live][: len(waiting)]
            if idle:
                live |= {slot: waiting.popleft() for slot in idle}
                draws = _draws(live, idle, sampling)
                tokens = session.start(*_padded([live[slot].ids for slot in idle]), draws, idle)
                yield from _advance(engine, live, idle, tokens, max_new)


def _draws(live: dict[int, _Sequence], order: list[int], sampling: Sampling) -> list[Draw]:
    return [sampling.draw(live[slot].rng) for slot in order]


def _advance(
    engine: Engine, live: dict[int, _Sequence], order: list[int], tokens: Ints, max_new: int
) -> Iterator[Token]:
    """Give out the next token of each slot in ``order``; finished sequences leave ``live``."""
    for slot, token in zip(order, tokens.tolist(), strict=True):
        s = live[slot]
        s.last = token
        s.made += 1
        full = s.made == max_new or len(s.ids) + s.made > engine.max_seq_len
        finish = "stop" if s.last in engine.config.eos_token_ids else "length" if full else None
        text = "" if s.stream is None or finish == "stop" else s.stream.push(s.last)
        if finish:
            text += s.stream.end() if s.stream else ""
            del live[slot]
        yield Token(s.prompt, s.last, text, finish)


def _padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(r) for r in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, lengths
