"""The KV cache of a session on the CPU, one buffer a slot, and the program calls that add to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import NotANumber
from dsv2_compile.runtime.arguments import Ints
from dsv2_compile.runtime.cache import Cache
from dsv2_compile.runtime.sampling import Draw, sample

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

Floats = NDArray[np.float32]

CHUNK_TOKENS = 512
"""Most new tokens of a row in one program call."""

SCORE_BYTES = 256 << 20
"""Most memory for one layer's attention scores, batch x heads x new x (cached + new) x 4 bytes."""


class ContiguousStore:
    """``slots`` sequences of up to ``max_tokens`` positions, for an engine whose programs are ONNX models."""

    def __init__(self, engine: Engine, slots: int, max_tokens: int) -> None:
        self._engine, self._config = engine, engine.config
        self._cache = Cache(self._config.num_hidden_layers, slots, max_tokens, self._config.cache_dim)

    def put(self, slot: int, rows: Floats) -> None:
        past, count = np.zeros(1, np.int64), np.array([rows.shape[1]])
        self._cache.store(slot, past, count, rows[:, None])

    def release(self, slots: Ints, empty: bool) -> None:
        """Rows of a slot stay until others take their place; with no sequence left, memory is given back."""
        if empty:
            self._cache.clear()

    def append(self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints) -> Floats:
        """Run the program over ids [B, S] in chunks; a row is in a call only while it has tokens left.

        So a finished row keeps its logits and cache, and every length a program sees is at least 1.
        """
        logits = np.empty((len(ids), self._config.vocab_size), np.float32)
        done = np.zeros_like(counts)
        order = np.argsort(slots)
        while len(active := order[done[order] < counts[order]]):
            for rows in _consecutive(active, slots):
                here, left = past[rows] + done[rows], counts[rows] - done[rows]
                width = self._chunk(here, left)
                take = np.minimum(left, width)
                new = _columns(ids[rows], done[rows], take, width)
                logits[rows] = self._call(phase, new, here, take, int(slots[rows[0]]))
                done[rows] += take
        return logits

    def choose(self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints, draws: Sequence[Draw]) -> Ints:
        logits = self.append(phase, ids, counts, slots, past)
        return np.array([sample(row, draw) for row, draw in zip(logits, draws, strict=True)])

    def _call(self, phase: str, ids: Ints, past: Ints, lengths: Ints, first: int) -> Floats:
        program = self._engine.program(phase)
        logits, rows = program.run(ids, past, lengths, self._cache.views(first, past))
        valid = np.arange(ids.shape[1])[None] < lengths[:, None]
        if not (np.isfinite(logits).all() and np.isfinite(rows[:, valid]).all()):
            raise NotANumber(
                f"{phase} gave NaN or infinity for slots {first}..{first + len(ids) - 1}.",
                "Check the engine with dsv2-compile verify; the weights may overflow its dtype.",
            )
        self._cache.store(first, past, lengths, rows)
        return logits

    def _chunk(self, past: Ints, left: Ints) -> int:
        """New tokens per row for the next call, padding included.

        No padded position may pass the last one of the rotary table, max_seq_len - 1.
        """
        context = self._cache.context(past)
        budget = SCORE_BYTES / (4 * len(past) * self._config.num_attention_heads)
        affordable = int((math.sqrt(context * context + 4 * budget) - context) / 2)
        room = int((self._engine.max_seq_len - past).min())
        return max(1, min(CHUNK_TOKENS, affordable, room, int(left.max())))


def _consecutive(rows: Ints, slots: Ints) -> list[Ints]:
    """Split ``rows``, which are in the order of their slots, where the slot numbers have a gap."""
    return np.split(rows, np.flatnonzero(np.diff(slots[rows]) != 1) + 1)


def _columns(ids: Ints, start: Ints, take: Ints, width: int) -> Ints:
    """Row b's tokens start[b]..start[b]+take[b]-1, padded to ``width`` with the last of them.

    Padding is computed like any token: one that is not the row's own could bring a NaN, and 0 x NaN is NaN.
    """
    at = start[:, None] + np.minimum(np.arange(width)[None], take[:, None] - 1)
    return np.take_along_axis(ids, at, 1)
