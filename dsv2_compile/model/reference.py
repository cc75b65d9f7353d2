"""DeepSeek-V2, eager and naive: the oracle, and what torch.export traces.

Plain functions over a mapping from weight names to tensors. One code path serves prefill, extension
and decode: the cache comes in as ``cache`` [B, P, C], the new rows [B, S, C] go out, nothing is
written in place. B sequences, S new tokens, P padded cached positions, T = P + S,
C = kv_lora_rank + qk_rope_head_dim, D hidden_size. Source: arXiv 2405.04434 and the published model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2_compile.config import ModelConfig
from dsv2_compile.kernels.dialect import upcast
from dsv2_compile.model.layout import naive_weights
from dsv2_compile.weights import TensorSource

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What every layer shares: cos and sin [B, S, R / 2], visible bool [B, S, T]."""

    cos: Tensor
    sin: Tensor
    visible: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = upcast(x)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each interleaved pair (x0, x1), (x2, x3), ... of the last dim turned by its angle."""
    wide = upcast(x)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)


def embed(weights: Weights, tokens: Tensor, past: Tensor, context: int) -> tuple[Tensor, Context]:
    """tokens [B, S], past [B] (cached positions of each row) -> hidden [B, S, D] and the shared context."""
    batch, count = tokens.shape
    hidden = F.embedding(tokens, weights["model.embed_tokens.weight"])
    cos, sin = weights["rope.cos"], weights["rope.sin"]
    # Right padding may run past the table; its results are never read.
    positions = (past[:, None] + torch.arange(count, device=tokens.device)).clamp(max=cos.shape[0] - 1)
    old = torch.arange(context, device=tokens.device) < past[:, None]
    new = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
    visible = torch.cat((old[:, None].expand(batch, count, context), new.expand(batch, count, count)), -1)
    return hidden, Context(cos[positions], sin[positions], visible)


def attention(config: ModelConfig, w: Weights, x: Tensor, cache: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
    """x [B, S, D], cache [B, P, C] -> output [B, S, D] and the new cache rows [B, S, C]."""
    c = config
    batch, count, _ = x.shape
    heads = c.num_attention_heads
    if c.q_lora_rank is None:
        q = F.linear(x, w["self_attn.q_proj.weight"])
    else:
        q_a = F.linear(x, w["self_attn.q_a_proj.weight"])
        q = F.linear(
            rms_norm(q_a, w["self_attn.q_a_layernorm.weight"], c.LATENT_NORM_EPS), w["self_attn.q_b_proj.weight"]
        )
    q = q.view(batch, count, heads, c.qk_head_dim)
    q_nope, q_pe = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
    q = torch.cat((q_nope, rotate(q_pe, ctx.cos[:, :, None], ctx.sin[:, :, None])), -1)

    latent, k_pe = F.linear(x, w["self_attn.kv_a_proj_with_mqa.weight"]).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
    latent = rms_norm(latent, w["self_attn.kv_a_layernorm.weight"], c.LATENT_NORM_EPS)
    rows = torch.cat((latent, rotate(k_pe, ctx.cos, ctx.sin)), -1)

    latent, k_pe = torch.cat((cache, rows), 1).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
    total = latent.shape[1]
    kv = F.linear(latent, w["self_attn.kv_b_proj.weight"]).view(batch, total, heads, -1)
    k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], -1)
    k = torch.cat((k_nope, k_pe[:, :, None].expand(batch, total, heads, c.qk_rope_head_dim)), -1)
    scores = upcast(torch.einsum("bshd,bthd->bhst", q, k)) * c.softmax_scale
    scores = scores.masked_fill(~ctx.visible[:, None], float("-inf")).softmax(-1).to(x.dtype)
    out = torch.einsum("bhst,bthv->bshv", scores, v).flatten(-2)
    return F.linear(out, w["self_attn.o_proj.weight"]), rows


def mlp(w: Weights, prefix: str, x: Tensor) -> Tensor:
    gate = F.linear(x, w[f"{prefix}.gate_proj.weight"])
    up = F.linear(x, w[f"{prefix}.up_proj.weight"])
    return F.linear(F.silu(gate) * up, w[f"{prefix}.down_proj.weight"])


def route(config: ModelConfig, gate: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, S, D], gate [E, D] -> expert ids [B, S, k] and their weights, fp32 or wider [B, S, k].

    Ties go to the lowest index. norm_topk_prob renormalises *instead of* scaling, as published.
    """
    c = config
    scores = F.linear(upcast(x), upcast(gate)).softmax(-1)
    if c.grouped:
        groups = scores.unflatten(-1, (c.n_group, -1))
        _, best = groups.amax(-1).sort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(groups[..., 0]).scatter(-1, best[..., : c.topk_group], 1.0)
        scores = (groups * kept[..., None]).flatten(-2)
    weights, ids = scores.sort(dim=-1, descending=True, stable=True)
    weights, ids = weights[..., : c.num_experts_per_tok], ids[..., : c.num_experts_per_tok]
    if c.norm_topk_prob and c.num_experts_per_tok > 1:
        return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * c.routed_scaling_factor


def routed_experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """All experts on all tokens, weighted by a dense [B, S, E] matrix: slow, exportable, loses none."""
    dense = weights.new_zeros(*weights.shape[:-1], gate_up.shape[0]).scatter(-1, ids, weights)
    gate, up = torch.einsum("bsd,ejd->bsej", x, gate_up).chunk(2, -1)
    out = torch.einsum("bsei,edi->bsed", F.silu(gate) * up, down)
    return (out * dense[..., None]).sum(-2).to(x.dtype)


def moe(config: ModelConfig, w: Weights, x: Tensor) -> Tensor:
    ids, weights = route(config, w["mlp.gate.weight"], x)
    out = routed_experts(x, ids, weights, w["mlp.experts.gate_up_proj"], w["mlp.experts.down_proj"])
    return out + mlp(w, "mlp.shared_experts", x) if config.n_shared_experts else out


def layer(
    config: ModelConfig, w: Weights, is_moe: bool, x: Tensor, cache: Tensor, ctx: Context
) -> tuple[Tensor, Tensor]:
    """One block; ``w`` has names without the ``model.layers.N.`` prefix. -> hidden [B, S, D], rows [B, S, C]."""
    attn, rows = attention(config, w, rms_norm(x, w["input_layernorm.weight"], config.rms_norm_eps), cache, ctx)
    x = x + attn
    y = rms_norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps)
    return x + (moe(config, w, y) if is_moe else mlp(w, "mlp", y)), rows


def last(hidden: Tensor, lengths: Tensor) -> Tensor:
    """hidden [B, S, D], lengths [B] -> the last valid token of each row, [B, D]."""
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]


def head(config: ModelConfig, weights: Weights, x: Tensor) -> Tensor:
    """x [..., D] -> logits [..., vocab]."""
    return F.linear(rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps), weights["lm_head.weight"])


class LayerWeights(Mapping[str, Tensor]):
    """The weights of one layer, without their prefix."""

    def __init__(self, weights: Weights, index: int) -> None:
        self.weights, self.prefix = weights, f"model.layers.{index}."

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (n.removeprefix(self.prefix) for n in self.weights if n.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class LazyWeights(Mapping[str, Tensor]):
    """Naive weights of a checkpoint in ``dtype``, evaluated on access and not kept."""

    def __init__(self, source: TensorSource, config: ModelConfig, dtype: torch.dtype, positions: int) -> None:
        self.source, self.dtype = source, dtype
        self.table = naive_weights(config, positions)

    def __getitem__(self, name: str) -> Tensor:
        return self.table[name].evaluate(self.source, self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.recipes)

    def __len__(self) -> int:
        return len(self.table.recipes)


def hidden_states(
    config: ModelConfig, weights: Weights, tokens: Tensor, past: Tensor, caches: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The hidden states before the final norm [B, S, D] and per layer the new cache rows [B, S, C]."""
    x, ctx = embed(weights, tokens, past, caches[0].shape[1])
    rows = []
    for i, cache in enumerate(caches):
        x, new = layer(config, LayerWeights(weights, i), config.is_moe(i), x, cache, ctx)
        rows.append(new)
    return x, rows


def forward(
    config: ModelConfig, weights: Weights, tokens: Tensor, past: Tensor, lengths: Tensor, caches: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """tokens int64 [B, S] right-padded, past and lengths int64 [B], caches per layer [B, P, C].

    -> logits [B, vocab] of each row's last valid token, per layer the new rows [B, S, C].
    """
    x, rows = hidden_states(config, weights, tokens, past, caches)
    return head(config, weights, last(x, lengths)), rows
