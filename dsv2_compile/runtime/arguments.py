"""Checks of what callers pass to a session: every mistake is a UsageError before anything has changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import UsageError
from dsv2_compile.runtime.sampling import Draw

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
    ids = integers("tokens", tokens, 2)
    counts = row_lengths("tokens", lengths, *ids.shape)
    ids[np.arange(ids.shape[1])[None] >= counts[:, None]] = 0
    vocabulary(ids, vocab_size)
    return ids, counts


def row_lengths(name: str, lengths: ArrayLike, rows: int, columns: int) -> Ints:
    """Checked lengths [rows] of the rows of ``name``, each 1 to ``columns``."""
    counts = integers("lengths", lengths, 1)
    if len(counts) != rows:
        raise UsageError(f"{name} has {rows} rows, lengths has {len(counts)}.", "Pass one length per row.")
    if counts.min() < 1:
        raise UsageError(f"Row {int(counts.argmin())} has no tokens.", "A prompt needs at least one token.")
    if counts.max() > columns:
        raise UsageError(
            f"lengths[{int(counts.argmax())}] is {int(counts.max())}, {name} has {columns} columns.",
            "lengths counts the valid tokens of each row.",
        )
    return counts


def cached_rows(value: ArrayLike, config: ModelConfig) -> NDArray[np.float32]:
    """``value`` as float32 [layers, B, T, cache_dim], finite: a NaN in the cache spoils its whole sequence."""
    rows = np.asarray(value, np.float32)
    layers, width = config.num_hidden_layers, config.cache_dim
    if rows.ndim != 4 or (rows.shape[0], rows.shape[3]) != (layers, width) or not np.isfinite(rows).all():
        raise UsageError(
            f"Cached rows are {list(rows.shape)} or not finite, expected [{layers}, batch, positions, {width}].",
            "Pass for every layer the rows of each sequence: the normalised latent, then the rotated key.",
        )
    return rows


def one_each(draws: Sequence[Draw] | None, rows: int) -> None:
    if draws is None:
        return
    if len(draws) != rows:
        raise UsageError(f"{len(draws)} draws for {rows} sequences.", "Pass one draw per sequence.")
    for draw in draws:
        if not 0 <= draw.uniform < 1:
            raise UsageError(f"Sampling uniform is {draw.uniform}.", "uniform must be at least 0 and below 1.")


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
