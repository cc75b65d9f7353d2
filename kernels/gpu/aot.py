"""Compiles kernels ahead of time: Triton source to a cubin for a named GPU, with no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel
from dsv2_compile.targets import Target


@dataclass(frozen=True)
class Cubin:
    """``symbol``: the entry point. ``shared``: bytes per block. ``warps``: per block, after warp specialisation."""

    image: bytes
    ptx: str
    symbol: str
    shared: int
    warps: int
    scratch: int
    scratch_align: int


def compile_kernel(
    kernel: Kernel, dims: Dims, config: Config, dtype: str, target: Target, aligned: Mapping[str, bool] | None = None
) -> Cubin:
    """``dtype``: of T, in Triton's names (bf16, fp16, fp32). ``aligned``: arguments that are multiples of 16,
    None for all pointers. Raises what the compiler raises."""
    claims = {n: k.startswith("*") for n, k in kernel.args.items()} if aligned is None else aligned
    constants = kernel.constants(dims, config)
    signature = {n: f"*{dtype}" if k == "*T" else k for n, k in kernel.args.items()}
    source = ASTSource(
        kernel.fn,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.args) if claims.get(n)},
    )
    options: dict[str, Any] = {**kernel.options(config), "enable_fp_fusion": True}
    built = triton.compile(
        source, target=GPUTarget("cuda", int(target.capability.removeprefix("sm_")), 32), options=options
    )
    m = built.metadata
    return Cubin(
        built.asm["cubin"],
        built.asm["ptx"],
        m.name,
        m.shared,
        m.num_warps,
        m.global_scratch_size,
        m.global_scratch_align,
    )
