"""Calls of `embedding`."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.check import Case, Tensors, normal
from dsv2_compile.kernels.gpu.embedding import EMBEDDING


def _embedding(rows: int, n: int, vocab: int) -> Case:
    def inputs(g: torch.Generator) -> Tensors:
        tokens = torch.randint(vocab, (rows,), generator=g, dtype=torch.int32)
        tokens[0], tokens[-1] = 0, vocab - 1
        return {"tokens": tokens, "table": normal(g, vocab, n)}

    return Case(f"{rows} rows of {n}, {vocab} tokens", EMBEDDING, {"N": n}, {"rows": rows}, inputs, {"out": (rows, n)})


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
