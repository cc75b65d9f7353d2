"""Cases of a call: at its very sizes, and of other sizes that the same compiled kernel runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch

from dsv2_compile.kernels.gpu.check import Case, normal
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel

FEWEST = 8
"""Held-out cases of a call, at least."""

Build: TypeAlias = Callable[[Dims, int, int], Case]
"""build(dims, rows, pattern): pattern 0 has the inputs that calls are timed with, every other number others."""


@dataclass(frozen=True)
class Maker:
    """``same(dims, sizes)``: at these sizes. ``others(dims, sizes, config, limit)``: `FEWEST` at least, the first
    ones those that tell most; ``limit``: FLOP that the largest may take."""

    same: Callable[[Dims, Mapping[str, int]], Case]
    others: Callable[[Dims, Mapping[str, int], Config, float], list[Case]]


def by_rows(kernel: Kernel, build: Build, patterns: int = 1, per_row: str = "") -> Maker:
    """Of a kernel whose calls differ in their rows and in what is in them. ``patterns``: how many ``build`` knows.
    ``per_row``: dim that says how many entries a row has, if blocks are of entries."""

    def same(dims: Dims, sizes: Mapping[str, int]) -> Case:
        return build(dims, sizes["rows"], 0)

    def others(dims: Dims, sizes: Mapping[str, int], config: Config, limit: float) -> list[Case]:
        def affordable(rows: int) -> bool:
            return int(kernel.cost(dims, {**sizes, "rows": rows}).flops) <= limit

        rows = edges(kernel, config, sizes["rows"], int(dims[per_row]) if per_row else 0)
        found = list(islice(filter(affordable, rows), max(FEWEST, patterns)))
        found += [r for r in range(1, 2 * FEWEST) if r not in found][: max(FEWEST, patterns) - len(found)]
        return [build(dims, r, i % patterns) for i, r in enumerate(found, start=1)]

    return Maker(same, others)


BLOCKS = {"BLOCK_M": 64, "TOKENS": 32, "BLOCK_R": 32, "BLOCK": 1024}
"""Knobs that are numbers of rows or of entries, and what they are taken for where nobody says."""


def edges(kernel: Kernel, config: Config, rows: int, entries: int) -> list[int]:
    """Numbers of rows at the edges of a configuration's blocks, and others; the telling ones first. ``entries``: of a
    row, where BLOCK is of entries; else it is of columns and a program has a row."""
    knob = next((n for n in BLOCKS if n in kernel.space and (n != "BLOCK" or entries)), None)
    if knob is None:
        wanted = [5, 1, 3, 2, 4, 9, 6, rows - 1, rows + 1, 7, 8]
    else:
        block = max(1, config.get(knob, BLOCKS[knob]) // max(entries, 1))
        group = config.get("GROUP_M", 1) * block
        wanted = [block + 1, 1, block - 1, 2 * block + 1, block, group + 1, 2 * block, rows - 1, 3, 2, 7, 4, 9, 17]
    return list(dict.fromkeys(r for r in wanted if r > 0))


def first_distinct(cases: Iterable[Case], count: int = FEWEST) -> list[Case]:
    """Up to ``count`` cases of different names."""
    return list(islice({c.name: c for c in cases}.values(), count))


def padded(generator: torch.Generator, rows: int, width: int, stride: int, scale: float = 1.0) -> torch.Tensor:
    """[rows, stride] from a normal distribution; NaN from column ``width`` on, which nobody may read."""
    values = normal(generator, rows, stride, scale=scale)
    values[:, width:] = float("nan")
    return values


def heavy_ends(x: torch.Tensor, width: int) -> torch.Tensor:
    """The first and the last of ``width`` columns count for more: whoever leaves them out is far off."""
    x[:, [0, width - 1]] *= 8
    return x


def zipf(generator: torch.Generator, rows: int, top_k: int, experts: int) -> torch.Tensor:
    """ids [rows, top_k], distinct in a row, some experts far more wanted than others."""
    weights = 1.0 / torch.arange(1, experts + 1)[torch.randperm(experts, generator=generator)]
    return torch.multinomial(weights.expand(rows, -1), top_k, generator=generator)


def cut(lengths: Sequence[int], most: int) -> tuple[int, ...]:
    """``lengths``, none above ``most``."""
    return tuple(min(n, most) for n in lengths)
