"""The next token of every row of logits: the meaning of `dsv2_compile.runtime.sampling`, without a sort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.kernel import Config, Dims, Grid, Kernel, Sizes, next_power_of_2, register
from dsv2_compile.kernels.gpu.source import sampling as source
from dsv2_compile.kernels.gpu.work_rows import sampling
from dsv2_compile.targets import Target

_PASSES = 37
"""Over a row's logits with top_p and without top_k: the largest, two cuts of 16, what is around them, the token."""
_SPACE = {"BLOCK": (2048, 4096, 8192, 16384), "num_warps": (4, 8, 16, 32), "num_stages": (1,)}


def _constants(dims: Dims, config: Config) -> dict[str, int | float | bool]:
    return {"VOCAB": dims["VOCAB"], "BLOCK": config["BLOCK"]}


def _grid(dims: Dims, config: Config, sizes: Sizes) -> Grid:
    return (sizes["rows"],)


def _default(dims: Dims, target: Target) -> Config:
    return {"BLOCK": min(8192, next_power_of_2(int(dims["VOCAB"]))), "num_warps": 16, "num_stages": 1}


def _argmax_reference(dims: Dims, sizes: Mapping[str, int], logits: torch.Tensor) -> dict[str, Any]:
    return {"tokens": logits.sort(dim=-1, descending=True, stable=True).indices[:, 0].to(torch.int32)}


def _sample_reference(
    dims: Dims,
    sizes: Mapping[str, int],
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    top_k: torch.Tensor,
    uniform: torch.Tensor,
) -> dict[str, Any]:
    tokens = []
    for r in range(sizes["rows"]):
        if logits[r].isnan().any() or logits[r].max() == float("inf"):
            tokens.append(-1)
            continue
        ordered, order = logits[r].sort(descending=True, stable=True)
        if temperature[r] == 0:
            tokens.append(int(order[0]))
            continue
        kept = int(top_k[r]) or len(order)
        p = ((ordered - ordered[0]) / temperature[r]).softmax(0)[:kept].cumsum(0)
        p = p / p[-1]
        if top_p[r] < 1:
            p = p[: int((p < top_p[r]).sum()) + 1]
        tokens.append(int(order[min(int((p <= uniform[r] * p[-1]).sum()), len(p) - 1)]))
    return {"tokens": torch.tensor(tokens, dtype=torch.int32)}


def _cost(dims: Dims, sizes: Mapping[str, int]) -> Cost:
    logits = sizes["rows"] * int(dims["VOCAB"])
    return Cost(4 * logits, logits)


ARGMAX = register(
    Kernel(
        name="argmax",
        fn=source.argmax,
        args={"logits": "*fp32", "tokens": "*i32", "rows": "i32"},
        outputs=("tokens",),
        constants=_constants,
        grid=_grid,
        space=_SPACE,
        default=_default,
        reference=_argmax_reference,
        cost=_cost,
        work=sampling(passes=1, operations=4),
    )
)
"""tokens [rows] = the lowest index of each row's largest value. logits [rows, VOCAB]; NaN is passed over.
dims: VOCAB."""


SAMPLE = register(
    Kernel(
        name="sample",
        fn=source.sample,
        args={
            "logits": "*fp32",
            "temperature": "*fp32",
            "top_p": "*fp32",
            "top_k": "*i32",
            "uniform": "*fp32",
            "tokens": "*i32",
            "rows": "i32",
        },
        outputs=("tokens",),
        constants=_constants,
        grid=_grid,
        space=_SPACE,
        default=_default,
        reference=_sample_reference,
        cost=_cost,
        work=sampling(passes=_PASSES, operations=26),
    )
)
"""tokens [rows] drawn from logits [rows, VOCAB]; temperature (0: as `ARGMAX`), top_p (1: all), top_k (0: all) and
uniform, in [0, 1), by row. Tokens stand in falling order of their logits, equal ones in that of their index; the first
top_k stay, of those the fewest whose share reaches top_p, and the token at which the share of what is left passes
`uniform` is the result. That is `runtime.sampling.sample` with its random number given, except that exponentials and
sums are fp32 there fp64: a number within about 1e-6 of an edge between two tokens may fall on the other side.
The token is -1 for a row with NaN or +inf, and undefined for one of nothing but -inf. dims: VOCAB, below 2**24."""
