"""Lays buffers out in one arena so that what lives at the same time never overlaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv2_compile.plan.plan import ALIGNMENT


@dataclass(frozen=True)
class Life:
    """``nbytes`` from the launch ``first`` to the launch ``last``, both included."""

    nbytes: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def lay_out(lives: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Offset of every buffer, multiples of `ALIGNMENT`, and the arena's size. Largest first, each in the lowest gap."""
    placed: dict[str, tuple[int, int, Life]] = {}
    for name, life in sorted(lives.items(), key=lambda item: (-item[1].nbytes, item[1].first, item[0])):
        start = 0
        size = -(-life.nbytes // ALIGNMENT) * ALIGNMENT
        for begin, end, other in sorted(placed.values(), key=lambda p: p[:2]):
            if not life.meets(other):
                continue
            if start + size <= begin:
                break
            start = max(start, end)
        placed[name] = (start, start + size, life)
    return {name: begin for name, (begin, _, _) in placed.items()}, max(
        (end for _, end, _ in placed.values()), default=0
    )
