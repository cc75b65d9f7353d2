"""From logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import UsageError

HOTTEST = 1e38
"""Temperature in fp32, finite so that logits of -inf stay impossible; all others are alike long before."""


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 keep all tokens; both given, top_k cuts first.

    The same ``seed`` gives the same tokens for the same logits; every prompt draws from its own stream.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (0 <= self.temperature < math.inf, "at least 0 and finite"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for name, (holds, text) in allowed.items():
            if not holds:
                raise UsageError(f"Sampling {name} is {getattr(self, name)}.", f"{name} must be {text}.")

    def stream(self, prompt: int) -> np.random.Generator:
        """The random numbers of prompt number ``prompt``, independent of the others in the batch."""
        return np.random.Generator(np.random.PCG64([self.seed, prompt]))

    def draw(self, rng: np.random.Generator) -> Draw:
        """The next token of a sequence; greedy takes no random number."""
        return Draw(self, rng.random() if self.temperature else 0.0)


@dataclass(frozen=True)
class Draw:
    """How the next token of one sequence is chosen; ``uniform`` in [0, 1) says which of those that could be."""

    sampling: Sampling
    uniform: float


def columns(draws: Sequence[Draw]) -> dict[str, NDArray[Any]]:
    """What the programs of a native plan take of ``draws``, by input, a value each."""
    most = np.iinfo(np.int32).max
    return {
        "temperature": np.array([min(d.sampling.temperature, HOTTEST) for d in draws], np.float32),
        "top_p": np.array([d.sampling.top_p for d in draws], np.float32),
        "top_k": np.array([min(d.sampling.top_k, most) for d in draws], np.int32),
        "uniform": np.array([d.uniform for d in draws], np.float32),
    }


def sample(logits: NDArray[np.float32], draw: Draw) -> int:
    """The next token of one sequence, logits [V]. Greedy takes the lowest id of equal maxima."""
    sampling = draw.sampling
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # to -inf, whose probability is 0
        scores = (scores - scores.max()) / sampling.temperature
    order = np.argsort(-scores, kind="stable")  # stable: equal scores keep id order on every platform
    if sampling.top_k:
        order = order[: sampling.top_k]
    p = np.exp(scores[order])
    cumulative = np.cumsum(p / p.sum())
    if sampling.top_p < 1:
        # the smallest set that reaches top_p, never empty
        cumulative = cumulative[: int(np.searchsorted(cumulative, sampling.top_p)) + 1]
    place = np.searchsorted(cumulative, draw.uniform * cumulative[-1], side="right")
    return int(order[min(int(place), len(cumulative) - 1)])
