"""The softmax gate of DeepSeek-V2 and the routed experts."""

from __future__ import annotations

import torch

from dsv2_compile.kernels.dialect import nbytes, numel, op, upcast
from dsv2_compile.program import Dim, TensorSpec


@op(
    "gate(Tensor x, Tensor w, int top_k, int n_group, int topk_group, float scale, bool normalize) -> (Tensor, Tensor)",
    shapes=lambda x, w, top_k, *_: (
        TensorSpec((*x.shape[:-1], top_k), torch.int64),
        TensorSpec((*x.shape[:-1], top_k), torch.promote_types(x.dtype, torch.float32)),
    ),
    flops=lambda x, w, *_: 2 * numel(x.shape) * w.shape[0],
)
def gate(
    x: torch.Tensor, w: torch.Tensor, top_k: int, n_group: int, topk_group: int, scale: float, normalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [B, S, H], w [E, H] -> ids int64 [B, S, k] and weights fp32 [B, S, k], in falling order.

    softmax over all experts in fp32; with n_group > 1 only the topk_group groups of highest
    maximum keep their scores, the others become 0. ``normalize`` divides the kept scores by their
    sum (+ 1e-20) *instead of* multiplying by ``scale``. Ties: the lowest index wins.
    """
    scores = torch.nn.functional.linear(upcast(x), upcast(w)).softmax(-1)
    if n_group > 1:
        grouped = scores.unflatten(-1, (n_group, -1))
        best = grouped.amax(-1).sort(dim=-1, descending=True, stable=True).indices[..., :topk_group]
        keep = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=x.device).scatter(-1, best, True)
        scores = grouped.masked_fill(~keep[..., None], 0.0).flatten(-2)
    values, ids = scores.sort(dim=-1, descending=True, stable=True)
    values, ids = values[..., :top_k], ids[..., :top_k]
    values = values / (values.sum(-1, keepdim=True) + 1e-20) if normalize else values * scale
    return ids, values


def _expert_flops(x: TensorSpec, ids: TensorSpec, weights: TensorSpec, up: TensorSpec, down: TensorSpec) -> Dim:
    return 6 * numel(ids.shape) * down.shape[1] * down.shape[2]


def _expert_bytes(x: TensorSpec, ids: TensorSpec, weights: TensorSpec, up: TensorSpec, down: TensorSpec) -> Dim:
    """Expected distinct experts of n uniform tokens: E (1 - (1 - k / E)^n)."""
    count, top_k = up.shape[0], ids.shape[-1]
    tokens = numel(ids.shape[:-1])
    hit = count * (1 - (1 - top_k / count) ** tokens)
    return 2 * nbytes(x) + hit * (nbytes(up) + nbytes(down)) / count


@op(
    "experts(Tensor x, Tensor ids, Tensor weights, Tensor w_gate_up, Tensor w_down) -> Tensor",
    shapes=lambda x, *_: x,
    flops=_expert_flops,
    touched=_expert_bytes,
)
def experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, w_gate_up: torch.Tensor, w_down: torch.Tensor
) -> torch.Tensor:
    """x [B, S, H], ids and weights [B, S, k], w_gate_up [E, 2I, H] (gate rows, then up), w_down [E, H, I].

    y = sum_j weights_j * W_down[e_j] (silu(W_gate[e_j] x) * W_up[e_j] x); only hit experts are computed.
    """
    out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for e in ids.unique().tolist():
        b, s, j = (ids == e).nonzero(as_tuple=True)
        g, u = torch.nn.functional.linear(x[b, s], w_gate_up[e]).chunk(2, -1)
        y = torch.nn.functional.linear(torch.nn.functional.silu(g) * u, w_down[e])
        out.index_put_((b, s), y * weights[b, s, j, None], accumulate=True)
    return out.to(x.dtype)
