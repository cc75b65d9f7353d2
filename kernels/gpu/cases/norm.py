"""Calls of `norm`."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.check import Case, Tensors, normal
from dsv2_compile.kernels.gpu.norm import RMS_NORM


def _rms_norm(rows: int, n: int, residual: bool = False, stride: int | None = None, picked: int | None = None) -> Case:
    stride, count = stride or n, picked or rows
    dims = {"N": n, "X_STRIDE": stride, "EPS": 1e-6, "RESIDUAL": residual, "INDEXED": picked is not None}

    def inputs(g: torch.Generator) -> Tensors:
        return {
            "x": normal(g, rows, stride, scale=3.0),
            "residual": normal(g, rows, n) if residual else None,
            "index": None if picked is None else torch.randint(rows, (count,), generator=g, dtype=torch.int32),
            "weight": normal(g, n) + 1,
        }

    outputs = {"out": (count, n), **({"total": (count, n)} if residual else {})}
    name = (
        f"{count} rows of {n}"
        + ", residual" * residual
        + f", stride {stride}" * (stride != n)
        + ", picked" * bool(picked)
    )
    return Case(name, RMS_NORM, dims, {"rows": count}, inputs, outputs)


CASES = {
    "rms_norm": [
        _rms_norm(1, 2048),
        _rms_norm(3, 5120, residual=True),
        _rms_norm(5, 1536, stride=2112),
        _rms_norm(2, 512, stride=577),
        _rms_norm(7, 33, residual=True),
        _rms_norm(4, 1),
        _rms_norm(9, 96, picked=4),
        _rms_norm(9, 96, residual=True, picked=4),
        _rms_norm(3, 40, residual=True, stride=56),
        _rms_norm(6, 257, residual=True),
        _rms_norm(64, 64),
    ]
}
