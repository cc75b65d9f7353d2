"""Sequences in flight: which slot holds how many tokens, and the calls that add to them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import arguments
from dsv2_compile.runtime.arguments import Ints
from dsv2_compile.runtime.contiguous import ContiguousStore
from dsv2_compile.runtime.sampling import Draw

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

Logits = NDArray[np.float32]
Slots = ArrayLike | None

_FREE = -1


class Store(Protocol):
    """Where the cached rows of a session lie, and what adds to them. Its callers have checked all arguments."""

    def append(self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints) -> Logits:
        """Add ids[b, :counts[b]] to the sequence in slots[b], which holds past[b] positions -> logits [B, V] of the
        last token of each. Raises what a Session does; then the sequences are as they were."""

    def choose(
        self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints, draws: Sequence[Draw]
    ) -> NDArray[np.integer]:
        """As `append`; instead of its logits the next token of each sequence, [B], chosen by draws[b]."""

    def put(self, slot: int, rows: NDArray[np.float32]) -> None:
        """Begin the sequence in ``slot`` with cache rows [layers, T, C]."""

    def release(self, slots: Ints, empty: bool) -> None:
        """Nothing of ``slots`` is needed any more; ``empty``: nor of any other."""


class Session:
    """``max_batch`` slots of up to ``max_tokens`` positions. Opened by `Engine.session`.

    A slot is one sequence's place in the cache; ``slots=None`` means slots 0..B-1. Calls from several
    threads wait for each other. A call that is refused (UsageError) changes nothing. A call that
    fails on the way leaves the sequences as they were; only `prefill`, which starts by discarding
    what its slots held, leaves those free.
    """

    def __init__(self, engine: Engine, max_batch: int, max_tokens: int, store: Store | None = None) -> None:
        self.max_batch, self.max_tokens, self._config = max_batch, max_tokens, engine.config
        self._lock = threading.Lock()
        self._lengths = np.full(max_batch, _FREE, np.int64)
        self._closed = False
        self._store: Store = store or ContiguousStore(engine, max_batch, max_tokens)

    def prefill(self, tokens: ArrayLike, lengths: ArrayLike, slots: Slots = None) -> Logits:
        """Start sequences: tokens int [B, S], padded on the right, lengths int [B] -> logits [B, V].

        Logits are of each row's last valid token. What a slot held before is discarded.
        """
        with self._lock:
            return self._append("prefill", *self._started(tokens, lengths, slots))

    def start(self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: Slots = None) -> Ints:
        """As `prefill` -> the next token of each sequence, int [B], chosen by draws[b]: without the logits."""
        with self._lock:
            return self._choose("prefill", *self._started(tokens, lengths, slots, draws), draws)

    def extend(self, tokens: ArrayLike, lengths: ArrayLike, slots: Slots = None) -> Logits:
        """Add tokens to sequences already there; arguments and result as for `prefill`."""
        with self._lock:
            return self._append("prefill", *self._extended(tokens, lengths, slots))

    def resume(self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: Slots = None) -> Ints:
        """As `extend` -> the next token of each sequence, int [B], chosen by draws[b]: without the logits."""
        with self._lock:
            return self._choose("prefill", *self._extended(tokens, lengths, slots, draws), draws)

    def decode(self, tokens: ArrayLike, slots: Slots = None) -> Logits:
        """Add one token to each sequence: tokens int [B] -> logits [B, V]."""
        with self._lock:
            return self._append("decode", *self._stepped(tokens, slots))

    def step(self, tokens: ArrayLike, draws: Sequence[Draw], slots: Slots = None) -> Ints:
        """As `decode` -> the next token of each sequence, int [B], chosen by draws[b]: without the logits."""
        with self._lock:
            return self._choose("decode", *self._stepped(tokens, slots, draws), draws)

    def restore(self, rows: ArrayLike, lengths: ArrayLike, slots: Slots = None) -> None:
        """Start sequences from a cache computed elsewhere: rows float [layers, B, T, cache_dim], lengths int [B].

        Row b's first lengths[b] positions: the normalised latent, then the rotated key. What a slot held is discarded.
        """
        with self._lock:
            self._require_open()
            values = arguments.cached_rows(rows, self._config)
            counts = arguments.row_lengths("rows", lengths, values.shape[1], values.shape[2])
            chosen = arguments.slot_numbers(slots, len(counts), self.max_batch)
            past = np.zeros_like(counts)
            self._require_room(past, counts)
            self._release(chosen)
            try:
                for b, slot in enumerate(chosen.tolist()):
                    self._store.put(slot, values[:, b, : counts[b]])
            except BaseException:
                self._release(chosen)
                raise
            self._lengths[chosen] = counts

    def free(self, slots: Slots = None) -> None:
        """End the sequences in ``slots``; None ends all. A slot that holds none is a UsageError."""
        with self._lock:
            self._require_open()
            if slots is None:
                chosen = np.flatnonzero(self._lengths != _FREE)
            else:
                chosen = arguments.slot_numbers(slots, None, self.max_batch)
                self._require_live(chosen)
            self._release(chosen)

    def length(self, slot: int) -> int:
        """Cached positions of the sequence in ``slot``."""
        with self._lock:
            self._require_open()
            return int(self._require_live(arguments.slot_numbers([slot], None, self.max_batch))[0])

    def close(self) -> None:
        """Give the cache back; every later call but this one is a UsageError."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release(np.flatnonzero(self._lengths != _FREE))
                del self._store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _require_open(self) -> None:
        """Called with the lock held. Not a generator's context manager that takes it: a signal that arrives between
        its yield and the body would leave the lock taken, and `close` waiting for it."""
        if self._closed:
            raise UsageError("The session is closed.", "Open a new one with engine.session().")

    def _require_live(self, slots: Ints) -> Ints:
        past = self._lengths[slots]
        if (past == _FREE).any():
            raise UsageError(f"Slot {int(slots[past == _FREE][0])} holds no sequence.", "Call prefill for it first.")
        return past

    def _require_room(self, past: Ints, counts: Ints) -> None:
        if (past + counts).max() > self.max_tokens:
            row = int((past + counts).argmax())
            raise UsageError(
                f"Row {row} has {past[row]} tokens cached and {counts[row]} new, the session holds {self.max_tokens}.",
                "Open the session with a larger max_tokens, or shorten the input.",
            )

    def _release(self, slots: Ints) -> None:
        self._lengths[slots] = _FREE
        self._store.release(slots, bool((self._lengths == _FREE).all()))

    def _started(
        self, tokens: ArrayLike, lengths: ArrayLike, slots: Slots, draws: Sequence[Draw] | None = None
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """Checked ids, counts, slots and past of a prefill; what its slots held is gone."""
        self._require_open()
        ids, counts = arguments.batch(tokens, lengths, self._config.vocab_size)
        chosen = arguments.slot_numbers(slots, len(ids), self.max_batch)
        past = np.zeros_like(counts)
        arguments.one_each(draws, len(ids))
        self._require_room(past, counts)
        self._release(chosen)
        return ids, counts, chosen, past

    def _extended(
        self, tokens: ArrayLike, lengths: ArrayLike, slots: Slots, draws: Sequence[Draw] | None = None
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """Checked ids, counts, slots and past of more tokens for sequences already there."""
        self._require_open()
        ids, counts = arguments.batch(tokens, lengths, self._config.vocab_size)
        chosen = arguments.slot_numbers(slots, len(ids), self.max_batch)
        past = self._require_live(chosen)
        arguments.one_each(draws, len(ids))
        self._require_room(past, counts)
        return ids, counts, chosen, past

    def _stepped(
        self, tokens: ArrayLike, slots: Slots, draws: Sequence[Draw] | None = None
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """Checked ids, counts, slots and past of a step of decode."""
        self._require_open()
        ids = arguments.integers("tokens", tokens, 1)[:, None]
        arguments.vocabulary(ids, self._config.vocab_size)
        chosen = arguments.slot_numbers(slots, len(ids), self.max_batch)
        past, ones = self._require_live(chosen), np.ones(len(ids), np.int64)
        arguments.one_each(draws, len(ids))
        self._require_room(past, ones)
        return ids, ones, chosen, past

    def _append(self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints) -> Logits:
        logits = self._store.append(phase, ids, counts, slots, past)
        self._lengths[slots] = past + counts
        return logits

    def _choose(self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints, draws: Sequence[Draw]) -> Ints:
        tokens = self._store.choose(phase, ids, counts, slots, past, draws)
        self._lengths[slots] = past + counts
        return tokens.astype(np.int64)
