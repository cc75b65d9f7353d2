"""One way of measuring for engines and for what they are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.bench.bandwidth import Bandwidth
from dsv2_compile.bench.stats import Spread
from dsv2_compile.errors import UsageError
from dsv2_compile.progress import Progress, silent

Ints = NDArray[np.int64]
WARM_STEPS = 3


class Subject(Protocol):
    """Something that runs a model. Tokens [B, S] or, to decode, [B]; results are the likeliest next tokens [B]."""

    vocab_size: int

    def prefill(self, tokens: Ints) -> Ints:
        """Start over with these tokens."""

    def at(self, cached: int) -> None:
        """Be where every sequence has ``cached`` positions that hold random numbers; not timed.

        A step takes as long over these as over a prompt, which may take minutes to compute.
        """

    def decode(self, tokens: Ints) -> Ints:
        """One more token for each sequence."""


@dataclass(frozen=True)
class Workload:
    """Prefill of each of ``prompt_lengths``, ``repeats`` times; ``decode_steps`` steps from each of ``contexts``.

    ``capacity``: positions a sequence has room for, None for what the workload needs. Past ``seconds``
    no further point is begun.
    """

    prompt_lengths: tuple[int, ...] = (128,)
    contexts: tuple[int, ...] = (128,)
    batch: int = 1
    decode_steps: int = 32
    repeats: int = 3
    threads: int = 1
    capacity: int | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = [self.batch, self.decode_steps, self.repeats, self.threads, *self.prompt_lengths, *self.contexts]
        if min(counts) < 1 or not (self.prompt_lengths or self.contexts):
            raise UsageError(
                "A length, context, batch, step, repeat or thread count is below 1, or nothing is to be measured.",
                "Give positive numbers, and at least one prompt length or context.",
            )
        if self.capacity is not None and self.capacity < self.need:
            raise UsageError(
                f"A capacity of {self.capacity} positions is too small: {self.need} are needed.",
                "Raise the capacity, or shorten the contexts, prompts or decode steps.",
            )

    @property
    def need(self) -> int:
        """Positions of a sequence at most."""
        steps = WARM_STEPS + self.decode_steps
        return max([*self.prompt_lengths, *(c + steps for c in self.contexts)])

    @property
    def positions(self) -> int:
        return self.capacity or self.need


@dataclass(frozen=True)
class PrefillPoint:
    tokens: int
    ms: Spread
    tokens_per_second: float


@dataclass(frozen=True)
class DecodePoint:
    """From ``context`` cached tokens on. ``ms``: of one step, in which every sequence gets a token.

    ``bandwidth_gbps``: memory read rate measured just before and after.
    """

    context: int
    ms: Spread
    tokens_per_second: float
    bandwidth_gbps: float


@dataclass(frozen=True)
class Measurements:
    """``top1``: the likeliest tokens after the first prompt, to see that all run the same model."""

    prefill: tuple[PrefillPoint, ...]
    decode: tuple[DecodePoint, ...]
    bandwidth_gbps: Spread
    bandwidth_method: str
    top1: tuple[int, ...]
    skipped: tuple[str, ...]


def measure(subject: Subject, work: Workload, progress: Progress = silent) -> Measurements:
    """Run ``work``; random tokens, the same for every subject of the same vocabulary."""
    deadline = time.monotonic() + (float("inf") if work.seconds is None else work.seconds)
    rng = np.random.default_rng(work.seed)
    tokens = rng.integers(0, subject.vocab_size, (work.batch, work.need), np.int64)
    bandwidth = Bandwidth(work.threads)
    rates = [bandwidth.gbps()]
    prefill: list[PrefillPoint] = []
    decode: list[DecodePoint] = []
    skipped: list[str] = []
    top1: Ints | None = None
    total = len(work.prompt_lengths) + len(work.contexts)
    for length in work.prompt_lengths:
        if time.monotonic() > deadline:
            skipped.append(f"prefill {length}")
            continue
        progress(f"prefill of {length}", len(prefill), total)
        warm = subject.prefill(tokens[:, :length])
        top1 = warm if top1 is None else top1
        prefill.append(_prefill(subject, tokens[:, :length], work.repeats, deadline))
        rates.append(bandwidth.gbps())
    for context in sorted(work.contexts):
        if time.monotonic() > deadline:
            skipped.append(f"decode at {context}")
            continue
        progress(f"decode at {context}", len(prefill) + len(decode), total)
        subject.at(context)
        ms = _decode(subject, tokens[:, context:], work.decode_steps)
        rates.append(bandwidth.gbps())
        speed = 1e3 * work.batch / ms.median
        decode.append(DecodePoint(context, ms, speed, (rates[-2] + rates[-1]) / 2))
    bandwidth.close()
    first = () if top1 is None else tuple(map(int, top1))
    return Measurements(tuple(prefill), tuple(decode), Spread.of(rates), bandwidth.method, first, tuple(skipped))


def filling(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Cached numbers of the size a normalised latent has, the same at every call."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _prefill(subject: Subject, tokens: Ints, repeats: int, deadline: float) -> PrefillPoint:
    """At least one repeat, however late it is."""
    times: list[float] = []
    while len(times) < repeats and (not times or time.monotonic() < deadline):
        times.append(_ms(lambda: subject.prefill(tokens)))
    ms = Spread.of(times)
    return PrefillPoint(tokens.shape[1], ms, 1e3 * tokens.size / ms.median)


def _decode(subject: Subject, tokens: Ints, steps: int) -> Spread:
    times = [_ms(lambda i=i: subject.decode(tokens[:, i])) for i in range(WARM_STEPS + steps)]  # type: ignore[misc]
    return Spread.of(times[WARM_STEPS:])


def _ms(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
