"""Calls of `embedding`."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows
from dsv2_compile.kernels.gpu.check import Case, Tensors, always, normal
from dsv2_compile.kernels.gpu.embedding import EMBEDDING
from dsv2_compile.kernels.gpu.kernel import Dims


def _case(dims: Dims, rows: int, vocab: int) -> Case:
    n = int(dims["N"])

    def inputs(g: torch.Generator) -> Tensors:
        tokens = torch.randint(vocab, (rows,), generator=g, dtype=torch.int32)
        tokens[0], tokens[-1] = 0, vocab - 1
        return {"tokens": tokens, "table": normal(g, vocab, n)}

    name = f"{rows} rows of {n}, {vocab} tokens"
    return Case(name, EMBEDDING, dims, {"rows": rows}, inputs, always(out=(rows, n)))


def _embedding(rows: int, n: int, vocab: int) -> Case:
    return _case({"N": n}, rows, vocab)


def _build(dims: Dims, rows: int, pattern: int) -> Case:
    """Of more tokens than rows, or of few."""
    return _case(dims, rows, (4 * rows + 1, 1, 7, 100)[pattern])


MAKERS: dict[str, Maker] = {"embedding": by_rows(EMBEDDING, _build, 4)}

CASES = {
    "embedding": [
        _embedding(1, 2048, 3),
        _embedding(2, 5120, 5),
        _embedding(1, 1, 1),
        _embedding(9, 1, 4),
        _embedding(7, 33, 100),
        _embedding(5, 1025, 2),
        _embedding(64, 16, 7),
        _embedding(3, 1536, 11),
    ]
}
