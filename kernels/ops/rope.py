"""Rotary embedding over interleaved pairs (x0, x1), (x2, x3), ... of the published weights."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.dialect import numel, op, upcast
from dsv2_compile.kernels.ops.norm import rms_norm


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [..., R], cos and sin [..., R / 2]: each pair times cos + i sin."""
    wide = upcast(x)
    a, b = wide[..., 0::2], wide[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)


@op(
    "rope(Tensor q, Tensor cos, Tensor sin, int nope) -> Tensor",
    shapes=lambda q, cos, sin, nope: q,
    flops=lambda q, cos, sin, nope: 3 * numel((*q.shape[:-1], q.shape[-1] - nope)),
)
def rope(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, nope: int) -> torch.Tensor:
    """q [B, S, H, nope + R], cos and sin [B, S, R / 2] fp32: rotates the last R values of each head."""
    return torch.cat((q[..., :nope], rotate(q[..., nope:], cos[:, :, None], sin[:, :, None])), -1)


@op(
    "latent_rope(Tensor kv, Tensor weight, Tensor cos, Tensor sin, float eps) -> Tensor",
    shapes=lambda kv, weight, cos, sin, eps: kv,
    flops=lambda kv, weight, cos, sin, eps: 4 * numel(kv.shape),
)
def latent_rope(
    kv: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> torch.Tensor:
    """kv [B, S, L + R] (kv_a projection), weight [L] -> the cache rows: normed latent, rotated key."""
    latent = weight.shape[0]
    return torch.cat((rms_norm(kv[..., :latent].contiguous(), weight, eps), rotate(kv[..., latent:], cos, sin)), -1)
