"""Matrix products that ATen has no single operator for."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.dialect import numel, op
from dsv2_compile.program import TensorSpec


@op(
    "head_linear(Tensor x, Tensor w) -> Tensor",
    shapes=lambda x, w: TensorSpec((*x.shape[:-1], w.shape[1]), x.dtype),
    flops=lambda x, w: 2 * numel(x.shape) * w.shape[1],
)
def head_linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [B, S, H, K], w [H, N, K] -> [B, S, H, N]: one linear per head."""
    return torch.einsum("bshk,hnk->bshn", x, w)


@op(
    "swiglu(Tensor gate_up) -> Tensor",
    shapes=lambda g: TensorSpec((*g.shape[:-1], g.shape[-1] // 2), g.dtype),
    flops=lambda g: 3 * numel(g.shape),
)
def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """[..., 2I] -> [..., I]: silu(first half) * second half."""
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up
