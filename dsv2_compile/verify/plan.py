"""What is fed to an engine, and in which pieces: the same tokens by several paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import UsageError

SEQUENCES = 3
PROMPT = 32
STEPS = 8
FAR_TOKENS = 3
FAR_CONTEXT = 4200
"""Past the 4096 positions after which YaRN scales the published models."""


@dataclass(frozen=True)
class Call:
    """One call: positions start..stop of ``sequences``, each in the slot of its own in ``slots``."""

    method: str
    sequences: tuple[int, ...]
    slots: tuple[int, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """``tokens`` by sequence; the first ``prompts[b]`` of sequence b are its prompt, the rest is decoded.

    ``past[b]`` positions before them are not computed, their cache rows are `synthetic`. At one position no
    two sequences have the same token, so a row of a batch can be told by what it is fed.
    """

    tokens: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    past: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.tokens))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each sequence starts among the positions of all, and their number."""
        return tuple(np.cumsum([0, *self.lengths]).tolist())

    @property
    def near(self) -> tuple[int, ...]:
        """Sequences that start at position 0."""
        return tuple(b for b, past in enumerate(self.past) if not past)

    def flat(self, sequence: int, position: int) -> int:
        return self.offsets[sequence] + position - self.past[sequence]

    @cached_property
    def paths(self) -> dict[str, tuple[Call, ...]]:
        """``batch``: ragged prefill, then decode; ``reuse``: the shortest sequence in the slot of the longest;
        ``single``: the longest alone, in the last slot; ``chunks``: ragged pieces by prefill and extend, what
        others decode included; ``far``: new tokens after a long synthetic prefix, by either program."""
        out = {
            "batch": self._decoded(self.near, self.near),
            "reuse": self._decoded(self.near[-1:], self.near[:1]),
            "single": self._decoded(self.near[:1], self.near[-1:]),
            "chunks": tuple(self._chunks(self.near)),
        }
        for b in set(range(len(self.tokens))) - set(self.near):
            start, stop = self.past[b], self.past[b] + self.lengths[b]
            out["far"] = (
                Call("extend", (b,), (0,), (start,), (stop,)),
                Call("decode", (b,), (0,), (start,), (start + 1,)),
            )
        return out

    def _decoded(self, sequences: tuple[int, ...], slots: tuple[int, ...]) -> tuple[Call, ...]:
        prompts = tuple(self.prompts[b] for b in sequences)
        steps = self.lengths[0] - self.prompts[0]
        ends = [tuple(n + i for n in prompts) for i in range(steps + 1)]
        first = Call("prefill", sequences, slots, (0,) * len(sequences), prompts)
        return first, *(Call("decode", sequences, slots, ends[i], ends[i + 1]) for i in range(steps))

    def _chunks(self, sequences: tuple[int, ...]) -> Iterator[Call]:
        """Quarters of each sequence, rounded up; a sequence leaves the batch at its end."""
        start = dict.fromkeys(sequences, 0)
        while live := tuple(b for b in sequences if start[b] < self.lengths[b]):
            stop = {b: min(start[b] + -(-self.lengths[b] // 4), self.lengths[b]) for b in live}
            method = "extend" if any(start.values()) else "prefill"
            yield Call(method, live, live, tuple(start[b] for b in live), tuple(stop.values()))
            start |= stop

    @cached_property
    def probes(self) -> tuple[int, ...]:
        """Flat positions whose logits some path shows."""
        calls = [c for path in self.paths.values() for c in path]
        return tuple(
            sorted({self.flat(b, stop - 1) for c in calls for b, stop in zip(c.sequences, c.stop, strict=True)})
        )


def make(config: ModelConfig, max_batch: int, max_tokens: int, seed: int = 0, steps: int = STEPS) -> Plan:
    """Random tokens within the limits of an engine; UsageError if there is no room for a prompt and a step.

    ``steps``: most tokens that are decoded after each prompt."""
    if max_tokens < 2:
        raise UsageError(
            f"An engine of {max_tokens} position cannot decode, so it cannot be verified.",
            "Build it with --max-seq-len of 2 or more.",
        )
    steps = min(steps, max(max_tokens // 4, 1))
    longest = min(PROMPT, max_tokens - steps)
    count = min(SEQUENCES, max_batch, config.vocab_size)
    prompts = [max(longest * (count - b) // count - b, 1) for b in range(count)]
    rng = np.random.default_rng(seed)
    columns = [rng.choice(config.vocab_size, count, replace=False).tolist() for _ in range(longest + steps)]
    tokens = [tuple(column[b] for column in columns[: prompts[b] + steps]) for b in range(count)]
    past = [0] * count
    if max_tokens > 2 * (longest + steps):
        tokens.append(tuple(rng.integers(config.vocab_size, size=FAR_TOKENS).tolist()))
        prompts.append(FAR_TOKENS)
        past.append(min(max_tokens, FAR_CONTEXT) - FAR_TOKENS)
    return Plan(tuple(tokens), tuple(prompts), tuple(past))


def synthetic(config: ModelConfig, layer: int, count: int) -> NDArray[np.float32]:
    """Cache rows [count, cache_dim] of mean square 1, the same on every machine and numpy version."""
    raw = np.random.Philox(key=layer).random_raw(count * config.cache_dim) >> np.uint64(40)
    unit = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (unit * np.float32(3**0.5)).reshape(count, config.cache_dim)
