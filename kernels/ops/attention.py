"""MLA over the latent cache, in its expanded and its absorbed form.

cache [B, P, L + R] holds P padded positions per row, row b sees the first past[b];
rows [B, S, L + R] are the new ones, query s sees rows 0..s. Softmax in fp32 or wider.
"""

from __future__ import annotations

import torch

from dsv2_compile.kernels.dialect import nbytes, numel, op, upcast
from dsv2_compile.program import Dim, TensorSpec


def visible(past: torch.Tensor, context: int, tokens: int) -> torch.Tensor:
    """bool [B, S, P + S]: which positions each query may attend to."""
    batch = past.shape[0]
    old = torch.arange(context, device=past.device)[None] < past[:, None]
    new = torch.ones(tokens, tokens, dtype=torch.bool, device=past.device).tril()
    return torch.cat((old[:, None].expand(batch, tokens, context), new[None].expand(batch, tokens, tokens)), -1)


def _pairs(q: TensorSpec, cache: TensorSpec) -> Dim:
    batch, tokens, heads = q.shape[:3]
    return batch * tokens * heads * (cache.shape[1] + tokens)


def _expanded_bytes(
    q: TensorSpec, cache: TensorSpec, rows: TensorSpec, w_kv: TensorSpec, past: TensorSpec, scale: float, v_dim: int
) -> Dim:
    """Operands and result once, plus K and V of every visible position written and read."""
    operands = sum((nbytes(t) for t in (q, cache, rows, w_kv)), 0)
    out = numel((*q.shape[:3], v_dim)) * q.dtype.itemsize
    expanded = cache.shape[0] * (cache.shape[1] + rows.shape[1]) * w_kv.shape[0] * q.dtype.itemsize
    return operands + out + 2 * expanded


def _softmax(scores: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    scores = upcast(scores) * scale
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)


@op(
    "mla_expanded(Tensor q, Tensor cache, Tensor rows, Tensor w_kv, Tensor past, float scale, int v_dim) -> Tensor",
    shapes=lambda q, cache, rows, w_kv, past, scale, v_dim: TensorSpec((*q.shape[:3], v_dim), q.dtype),
    flops=lambda q, cache, rows, w_kv, past, scale, v_dim: (
        2 * _pairs(q, cache) * (q.shape[3] + v_dim)
        + 2 * numel(w_kv.shape) * cache.shape[0] * (cache.shape[1] + rows.shape[1])
    ),
    touched=_expanded_bytes,
)
def mla_expanded(
    q: torch.Tensor,
    cache: torch.Tensor,
    rows: torch.Tensor,
    w_kv: torch.Tensor,
    past: torch.Tensor,
    scale: float,
    v_dim: int,
) -> torch.Tensor:
    """q [B, S, H, nope + R], w_kv [H * (nope + v_dim), L] -> [B, S, H, v_dim]; K and V per head."""
    batch, tokens, heads, _ = q.shape
    latent = w_kv.shape[1]
    kv = torch.cat((cache, rows), 1)
    up = torch.nn.functional.linear(kv[..., :latent], w_kv).view(batch, kv.shape[1], heads, -1)
    k_pe = kv[:, :, None, latent:].expand(-1, -1, heads, -1)
    k = torch.cat((up[..., :-v_dim], k_pe), -1)
    scores = torch.einsum("bshd,bthd->bhst", q, k)
    p = _softmax(scores, visible(past, cache.shape[1], tokens), scale).to(q.dtype)
    return torch.einsum("bhst,bthv->bshv", p, up[..., -v_dim:])


@op(
    "mla_absorbed(Tensor q, Tensor cache, Tensor rows, Tensor past, float scale, int latent) -> Tensor",
    shapes=lambda q, cache, rows, past, scale, latent: TensorSpec((*q.shape[:3], latent), q.dtype),
    flops=lambda q, cache, rows, past, scale, latent: 2 * _pairs(q, cache) * (q.shape[3] + latent),
)
def mla_absorbed(
    q: torch.Tensor, cache: torch.Tensor, rows: torch.Tensor, past: torch.Tensor, scale: float, latent: int
) -> torch.Tensor:
    """q [B, S, H, L + R] (query times W_UK, rotated part) -> [B, S, H, L]; one latent head for all."""
    kv = torch.cat((cache, rows), 1)
    scores = torch.einsum("bshd,btd->bhst", q, kv)
    p = _softmax(scores, visible(past, cache.shape[1], q.shape[1]), scale).to(q.dtype)
    return torch.einsum("bhst,btl->bshl", p, kv[..., :latent])
