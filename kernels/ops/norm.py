"""RMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last dim, computed in fp32 or wider."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.dialect import numel, op, upcast


@op(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    shapes=lambda x, weight, eps: x,
    flops=lambda x, weight, eps: 4 * numel(x.shape),
)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., N], weight [N] -> [..., N]."""
    wide = upcast(x)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@op(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
    shapes=lambda x, residual, weight, eps: (x, x),
    flops=lambda x, residual, weight, eps: 5 * numel(x.shape),
)
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [..., N] -> (RMSNorm(x + residual), x + residual)."""
    total = residual + x
    return rms_norm(total, weight, eps), total
