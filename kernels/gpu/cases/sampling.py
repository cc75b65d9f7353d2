"""Calls of `sampling`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows
from dsv2_compile.kernels.gpu.check import Case, Tensors, always, normal
from dsv2_compile.kernels.gpu.kernel import Dims
from dsv2_compile.kernels.gpu.sampling import ARGMAX, SAMPLE

Logits: TypeAlias = Callable[[torch.Generator, int, int], torch.Tensor]
Row: TypeAlias = tuple[float, int, bool]
"""temperature, top_k, whether top_p cuts"""
VISIBLE = 1e-4
"""Least share of a token whose middle is far enough from its edges for fp32 to tell."""


def _smooth(g: torch.Generator, rows: int, vocab: int) -> torch.Tensor:
    return normal(g, rows, vocab, scale=3.0)


def _ends(g: torch.Generator, rows: int, vocab: int) -> torch.Tensor:
    """The last token is the likeliest, or the first, by turns."""
    values = _smooth(g, rows, vocab)
    values[::2, -1] = values[::2].amax(1) + 1
    values[1::2, 0] = values[1::2].amax(1) + 1
    return values


def _tied(g: torch.Generator, rows: int, vocab: int) -> torch.Tensor:
    """Few distinct values, both zeros among them."""
    return (normal(g, rows, vocab) * 2).round() / 2 * (1.0 - torch.arange(vocab) % 2 * 2)


def _equal(g: torch.Generator, rows: int, vocab: int) -> torch.Tensor:
    return torch.full((rows, vocab), -7.25, dtype=torch.float64)


def _zeros(g: torch.Generator, rows: int, vocab: int) -> torch.Tensor:
    """Of both signs."""
    return normal(g, rows, vocab).sign() * 0.0


def _negative(g: torch.Generator, rows: int, vocab: int) -> torch.Tensor:
    return -1000 - _smooth(g, rows, vocab).abs()


def _banned(g: torch.Generator, rows: int, vocab: int) -> torch.Tensor:
    """Every third token at -inf, the first among them."""
    return _smooth(g, rows, vocab).index_fill(1, torch.arange(0, vocab, 3), float("-inf"))


def _argmax(rows: int, vocab: int, logits: Logits = _smooth) -> Case:
    def inputs(g: torch.Generator) -> Tensors:
        return {"logits": logits(g, rows, vocab)}

    name = f"{rows} rows of {vocab}, {logits.__name__[1:]}"
    return Case(name, ARGMAX, {"VOCAB": vocab}, {"rows": rows}, inputs, always(tokens=(rows,)))


def _middle(g: torch.Generator, p: torch.Tensor) -> tuple[int, float]:
    """A place of p [n], falling and with sum 1, and the middle of its part of the sum."""
    places = int((p > VISIBLE).sum())
    place = int(torch.randint(places, (), generator=g))
    return place, float(p[:place].sum() + p[place] / 2)


def _sample(vocab: int, rows: list[Row], logits: Logits = _smooth) -> Case:
    """``uniform`` and a cutting ``top_p`` lie in the middle of a visible token of what they divide."""

    def inputs(g: torch.Generator) -> Tensors:
        values = logits(g, len(rows), vocab).float().double()
        top_p, uniform = torch.ones(len(rows)), torch.zeros(len(rows))
        for r, (temperature, top_k, cut) in enumerate(rows):
            if not temperature:
                continue
            p = (values[r] / temperature).softmax(0).sort(descending=True).values[: top_k or vocab]
            if cut:
                place, top_p[r] = _middle(g, p / p.sum())
                p = p[: place + 1]
            uniform[r] = _middle(g, p / p.sum())[1]
        return {
            "logits": values,
            "temperature": torch.tensor([t for t, _, _ in rows], dtype=torch.float64),
            "top_p": top_p.double(),
            "top_k": torch.tensor([k for _, k, _ in rows], dtype=torch.int32),
            "uniform": uniform.double(),
        }

    name = f"{vocab}, {logits.__name__[1:]}: {', '.join(f'{t:g} {k} {c:d}' for t, k, c in rows)}"
    return Case(name, SAMPLE, {"VOCAB": vocab}, {"rows": len(rows)}, inputs, always(tokens=(len(rows),)))


_LOGITS: tuple[Logits, ...] = (_smooth, _ends, _tied, _banned, _equal, _negative, _zeros)


def _build_argmax(dims: Dims, rows: int, pattern: int) -> Case:
    return _argmax(rows, int(dims["VOCAB"]), _LOGITS[pattern])


def _build_sample(dims: Dims, rows: int, pattern: int) -> Case:
    """All kinds of rows by turns; of flat logits few tokens, as one of many would be too small a share to tell."""
    vocab = int(dims["VOCAB"])
    few, several = min(50, vocab), min(300, vocab)
    kinds: list[Row] = [(0.7, 0, True), (1.0, few, False), (0.0, 0, False), (1.3, several, True), (0.3, 0, False)]
    flat: list[Row] = [(1.0, few, True), (0.0, 0, False), (2.0, several, False), (1.0, 1, True)]
    logits = _LOGITS[max(pattern - 1, 0)]
    chosen = kinds[:1] if pattern == 0 else kinds if logits in (_smooth, _ends, _banned) else flat
    return _sample(vocab, [chosen[(r + rows) % len(chosen)] for r in range(rows)], logits)


MAKERS: dict[str, Maker] = {
    "argmax": by_rows(ARGMAX, _build_argmax, len(_LOGITS)),
    "sample": by_rows(SAMPLE, _build_sample, len(_LOGITS) + 1),
}

CASES = {
    "argmax": [
        _argmax(2, 102400),
        _argmax(3, 102400, _tied),
        _argmax(1, 1),
        _argmax(5, 33),
        _argmax(2, 20000, _equal),
        _argmax(1, 8192),
        _argmax(4, 8193, _tied),
        _argmax(7, 16385, _negative),
        _argmax(3, 1000, _banned),
        _argmax(2, 2, _equal),
    ],
    "sample": [
        _sample(102400, [(0.7, 0, True)]),
        _sample(8193, [(1.0, 50, True), (0.3, 0, True), (0.0, 5, False), (2.0, 1, False)]),
        _sample(1, [(1.0, 0, False), (1.0, 3, True), (0.0, 0, False)]),
        _sample(33, [(1.0, 7, False), (1.0, 33, True), (1.0, 40, False), (0.5, 32, True)]),
        _sample(20000, [(1.0, 1, False), (1.0, 0, False), (0.25, 300, True), (0.0, 0, False)], _tied),
        _sample(300, [(1.0, 0, True), (1.0, 77, False), (3.0, 100, True), (0.5, 1, True)], _tied),
        _sample(257, [(1.0, 0, True), (1.0, 0, False), (1.0, 100, True), (0.0, 0, False)], _equal),
        _sample(40, [(1.0, 0, True), (1.0, 0, False), (1.0, 13, True)], _zeros),
        _sample(1000, [(1.0, 0, True), (1.0, 500, False), (0.5, 20, True)], _negative),
        _sample(1000, [(1.0, 0, True), (1.0, 900, False), (1.0, 999, True), (0.0, 0, False)], _banned),
        _sample(500, [(1e6, 0, True), (1e-4, 0, False), (1e-35, 0, False), (100.0, 499, True)]),
    ],
}
