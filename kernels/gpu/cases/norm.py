"""Calls of `norm`."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.gpu.cases.makers import Maker, by_rows, padded
from dsv2_compile.kernels.gpu.check import Case, Tensors, normal
from dsv2_compile.kernels.gpu.kernel import Dims
from dsv2_compile.kernels.gpu.norm import RMS_NORM

_SCALES = (3.0, 1e-3, 200.0, 3.0)
"""Of the values, by pattern: where epsilon counts, too."""


def _case(dims: Dims, rows: int, source: int, pattern: int = 0) -> Case:
    """``source``: rows to pick from, where the norm is of picked ones."""
    n, stride, scale = int(dims["N"]), int(dims["X_STRIDE"]), _SCALES[pattern % len(_SCALES)]
    picks = {1: lambda g: torch.full((rows,), source - 1), 2: lambda g: torch.arange(source - 1, -1, -1)[:rows]}
    pick = picks.get(pattern, lambda g: torch.randint(source, (rows,), generator=g))

    def inputs(g: torch.Generator) -> Tensors:
        return {
            "x": padded(g, source, n, stride, scale=scale),
            "residual": normal(g, source, n, scale=scale / 3) if dims["RESIDUAL"] else None,
            "index": pick(g).to(torch.int32) if dims["INDEXED"] else None,
            "weight": normal(g, n) + 1,
        }

    name = (
        f"{rows} rows of {n}"
        + ", residual" * bool(dims["RESIDUAL"])
        + f", stride {stride}" * (stride != n)
        + f", of {source}" * bool(dims["INDEXED"])
        + f", pattern {pattern}" * (pattern > 0)
    )
    shapes = {"out": (rows, n), **({"total": (rows, n)} if dims["RESIDUAL"] else {})}
    return Case(name, RMS_NORM, dims, {"rows": rows}, inputs, lambda config: shapes)


def _rms_norm(rows: int, n: int, residual: bool = False, stride: int | None = None, picked: int | None = None) -> Case:
    dims = {"N": n, "X_STRIDE": stride or n, "EPS": 1e-6, "RESIDUAL": residual, "INDEXED": picked is not None}
    return _case(dims, picked or rows, rows)


def _build(dims: Dims, rows: int, pattern: int) -> Case:
    return _case(dims, rows, 3 * rows + 2 if dims["INDEXED"] else rows, pattern)


MAKERS: dict[str, Maker] = {"rms_norm": by_rows(RMS_NORM, _build, len(_SCALES))}

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
