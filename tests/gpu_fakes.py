"""Kernels of `gpu_sources` as the compile stage wants them; none is registered."""

from __future__ import annotations

from typing import Any

from dsv2_compile.backends.cuda.compile import request
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.kernel import Kernel
from tests import gpu_sources


def fake(name: str, args: dict[str, str], default: dict[str, int]) -> Kernel:
    """Every dim and every knob but the launch options is a constant of the source."""
    return Kernel(
        name=name,
        fn=getattr(gpu_sources, name),
        args=args,
        outputs=(),
        constants=lambda dims, config: {**dims, **{k: v for k, v in config.items() if k.isupper()}},
        grid=lambda dims, config, sizes: (1,),
        space={},
        default=lambda dims, target: default,
        reference=lambda dims, sizes, **tensors: {},
        cost=lambda dims, sizes: Cost(0, 0),
    )


DOUBLE = fake("double", {"x": "*T", "out": "*T", "n": "i32"}, {"BLOCK": 256, "num_warps": 4, "num_stages": 1})
IDLE = fake("idle", dict(DOUBLE.args), DOUBLE.default({}, None))
MATMUL = fake(
    "matmul",
    {"a": "*T", "b": "*T", "out": "*T", "k": "i32"},
    {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 4},
)
UNLUCKY = fake("unlucky", {"x": "*i32"}, {"num_warps": 1, "num_stages": 1})
FAKES = {k.name: k for k in (DOUBLE, MATMUL, UNLUCKY)}


def double(block: int = 256, dtype: str = "bf16", **claims: bool) -> Request:
    config = {"BLOCK": block, "num_warps": 4, "num_stages": 1}
    return request(DOUBLE, {}, config, dtype, claims or None)


def matmul(**config: Any) -> Request:
    return request(MATMUL, {"N": 256}, {**MATMUL.default({}, None), **config}, "bf16")


def unlucky(what: str) -> Request:
    dims = {"KIND": list(gpu_sources.MISHAPS).index(what)}
    return request(UNLUCKY, dims, UNLUCKY.default(dims, None), "bf16")
