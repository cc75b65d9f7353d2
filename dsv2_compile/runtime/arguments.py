"""Checks of what callers pass to a session: every mistake is a UsageError before anything has changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsv2_compile.errors import UsageError

Ints = NDArray[np.int64]


def integers(name: str, value: ArrayLike | None, ndim: int) -> Ints:
    """``value`` as a new int64 array with ``ndim`` dims, not empty."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged lists
        array = np.empty(1, object)
    if array.size == 0:
        raise UsageError(f"{name} is empty.", "Pass at least one sequence, and at least one token in each.")
    if array.dtype.kind not in "iu" or array.ndim != ndim:
        raise UsageError(
            f"{name} is {array.dtype} with {array.ndim} dims, expected integers with {ndim}.",
            f"Pass {name} as an int32 array{' [batch, tokens], padded on the right' if ndim == 2 else ' [batch]'}.",
        )
    return array.astype(np.int64)


def batch(tokens: ArrayLike, lengths: ArrayLike, vocab_size: int) -> tuple[Ints, Ints]:
    """Checked tokens [B, S] with the padding set to 0, and lengths [B]."""
    ids, counts = integers("tokens", tokens, 2), integers("lengths", lengths, 1)
    if len(counts) != len(ids):
        raise UsageError(f"tokens has {len(ids)} rows, lengths has {len(counts)}.", "Pass one length per row.")
    if counts.min() < 1:
        raise UsageError(f"Row {int(counts.argmin())} has no tokens.", "A prompt needs at least one token.")
    if counts.max() > ids.shape[1]:
        raise UsageError(
            f"lengths[{int(counts.argmax())}] is {int(counts.max())}, tokens has {ids.shape[1]} columns.",
            "lengths counts the valid tokens of each row.",
        )
    ids[np.arange(ids.shape[1])[None] >= counts[:, None]] = 0
    vocabulary(ids, vocab_size)
    return ids, counts


def vocabulary(ids: Ints, vocab_size: int) -> None:
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        raise UsageError(
            f"Token {int(ids[bad][0])} is outside the vocabulary of {vocab_size}.",
            "Use the tokenizer that belongs to this model.",
        )


def slot_numbers(slots: ArrayLike | None, rows: int | None, max_batch: int) -> Ints:
    """Slots of a call with ``rows`` sequences; None means 0..rows-1."""
    chosen = np.arange(rows, dtype=np.int64) if slots is None and rows is not None else integers("slots", slots, 1)
    if rows is not None and len(chosen) != rows:
        raise UsageError(f"{len(chosen)} slots for {rows} sequences.", "Pass one slot per sequence.")
    if chosen.min() < 0 or chosen.max() >= max_batch:
        raise UsageError(
            f"Slot {int(chosen.min() if chosen.min() < 0 else chosen.max())} is outside 0..{max_batch - 1}.",
            f"The session was opened with max_batch={max_batch}.",
        )
    if len(set(chosen.tolist())) != len(chosen):
        raise UsageError("A slot is given twice.", "Each sequence of a call needs its own slot.")
    return chosen
