"""The dims that a model's programs call each kernel with: what has to compile, and what is worth tuning and timing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsv2_compile.config import ModelConfig
from dsv2_compile.kernels.gpu.kernel import Dims

PAGE = 64
"""Positions of a cache page."""
SPLITS = (2, 4, 8)
"""Parts of K that linear layers with few rows are cut in."""


@dataclass(frozen=True)
class Shape:
    what: str
    kernel: str
    dims: Dims


def shapes(config: ModelConfig, rows: int, batch: int = 32, parts: int = 264) -> list[Shape]:
    """Every launch of prefill, extend and decode, once. ``rows``: new rows to be fast for; ``batch``: most sequences;
    ``parts``: of a decode step's attention."""
    parts_of_model = _attention, _absorbed, _experts, _ends
    return [s for part in parts_of_model for s in part(config, rows, batch, parts)]


def _linear(what: str, n: int, k: int, rows: int, x_stride: int = 0, indexed: bool = False) -> Shape:
    dims = {"N": n, "K": k, "X_STRIDE": x_stride or k, "OUT_STRIDE": n, "INDEXED": indexed, "ROWS_HINT": rows}
    return Shape(what, "linear", dims)


def _norm(what: str, n: int, eps: float, stride: int = 0, residual: bool = False, indexed: bool = False) -> Shape:
    dims = {"N": n, "X_STRIDE": stride or n, "EPS": eps, "RESIDUAL": residual, "INDEXED": indexed}
    return Shape(what, "rms_norm", dims)


def _rope(what: str, c: ModelConfig, out_head: int, offset: int) -> Shape:
    heads, row = c.num_attention_heads, c.num_attention_heads * c.qk_head_dim
    dims = {"HEADS": heads, "NOPE": c.qk_nope_head_dim, "ROPE": c.qk_rope_head_dim, "Q_ROW": _q_stride(c)}
    out_row = _q_stride(c) if out_head * heads == row else heads * out_head
    return Shape(what, "rope_query", {**dims, "OUT_ROW": out_row, "OUT_HEAD": out_head, "OUT_OFFSET": offset})


def _q_width(c: ModelConfig) -> int:
    """Of what is projected beside the latent: compressed queries, or queries."""
    return c.q_lora_rank or c.num_attention_heads * c.qk_head_dim


def _q_stride(c: ModelConfig) -> int:
    """Between rows of the queries: they lie beside the latent where they are not compressed."""
    return c.num_attention_heads * c.qk_head_dim + (0 if c.q_lora_rank else c.cache_dim)


def _attention(c: ModelConfig, rows: int, batch: int, parts: int) -> Iterator[Shape]:
    """All but the absorbed form."""
    hidden, heads, latent, rope = c.hidden_size, c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim
    nope, v, eps = c.qk_nope_head_dim, c.v_head_dim, c.LATENT_NORM_EPS
    first = _q_width(c) + c.cache_dim
    yield _norm("norm of the residual", hidden, c.rms_norm_eps, residual=True)
    yield _linear("queries and latent", first, hidden, rows)
    if c.q_lora_rank:
        yield _norm("norm of compressed queries", c.q_lora_rank, eps, stride=first)
        yield _linear("queries", heads * c.qk_head_dim, c.q_lora_rank, rows)
    yield Shape("cache rows", "latent_cache", {"LATENT": latent, "ROPE": rope, "KV_STRIDE": first, "EPS": eps})
    yield _rope("rotation in place", c, c.qk_head_dim, nope)
    yield _linear("keys and values", heads * (nope + v), latent, rows, c.cache_dim, indexed=True)
    dims = {"HEADS": heads, "NOPE": nope, "ROPE": rope, "V": v, "LATENT": latent, "Q_ROW": _q_stride(c)}
    yield Shape("attention, expanded", "mla_prefill", {**dims, "SCALE": c.softmax_scale, "MAX_BATCH": batch})
    yield _linear("output of attention", hidden, heads * v, rows)


def _absorbed(c: ModelConfig, rows: int, batch: int, parts: int) -> Iterator[Shape]:
    heads, latent, rope, v = c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim, c.v_head_dim
    nope, width = c.qk_nope_head_dim, c.cache_dim
    dims = {"HEADS": heads, "X_ROW": _q_stride(c), "X_HEAD": c.qk_head_dim, "ROWS_HINT": rows}
    out = {"OUT_ROW": heads * width, "OUT_HEAD": width}
    yield Shape("queries to the latent", "head_linear", {**dims, "N": latent, "K": nope, **out})
    yield _rope("rotation beside the latent", c, width, latent)
    model = {"HEADS": heads, "LATENT": latent, "ROPE": rope, "SCALE": c.softmax_scale}
    cache = {"PAGE": PAGE, "MAX_PAGES": -(-c.max_position_embeddings // PAGE)}
    yield Shape("split of a step", "mla_schedule", {"PAGE": PAGE, "PARTS": parts, "OVERHEAD": 1})
    yield Shape("attention, absorbed, decode", "mla_decode", {**model, **cache, "PARTS": parts})
    yield Shape("merge of parts", "mla_combine", {"HEADS": heads, "LATENT": latent, "PARTS": parts})
    yield Shape("attention, absorbed, extend", "mla_extend", {**model, **cache, "MAX_BATCH": batch})
    dims = {"HEADS": heads, "X_ROW": heads * latent, "X_HEAD": latent, "ROWS_HINT": rows}
    out = {"OUT_ROW": heads * v, "OUT_HEAD": v}
    yield Shape("latent to values", "head_linear", {**dims, "N": v, "K": latent, **out})


def _experts(c: ModelConfig, rows: int, batch: int, parts: int) -> Iterator[Shape]:
    hidden, inter, experts, top_k = c.hidden_size, c.moe_intermediate_size, c.n_routed_experts, c.num_experts_per_tok
    widths = {"dense": c.intermediate_size, "shared": inter * c.n_shared_experts}
    for what, n in widths.items():
        dims = {"N": n, "K": hidden, "X_STRIDE": hidden, "ROWS_HINT": rows}
        yield Shape(f"{what} MLP, up", "linear_swiglu", dims)
        yield _linear(f"{what} MLP, down", hidden, n, rows)
    groups = {"GROUPS": c.n_group, "TOPK_GROUPS": c.topk_group} if c.grouped else {"GROUPS": 1, "TOPK_GROUPS": 1}
    rule = {"SCALE": c.routed_scaling_factor, "NORMALIZE": c.norm_topk_prob}
    routed = {"EXPERTS": experts, "TOP_K": top_k, "ROWS_HINT": rows}
    yield Shape("gate", "gate", {**routed, "K": hidden, **groups, **rule})
    yield Shape("order of entries", "dispatch", routed)
    yield Shape("experts, up", "moe_up", {**routed, "N": inter, "K": hidden})
    yield Shape("experts, down", "moe_down", {**routed, "N": hidden, "K": inter})
    yield Shape("sum of experts", "moe_combine", {"N": hidden, "TOP_K": top_k, "SHARED": True})


def _ends(c: ModelConfig, rows: int, batch: int, parts: int) -> Iterator[Shape]:
    """Embedding, head, sampling, and sums of linear layers whose K is split."""
    hidden, vocab = c.hidden_size, c.vocab_size
    yield Shape("embedding", "embedding", {"N": hidden})
    yield _norm("first norm", hidden, c.rms_norm_eps)
    yield _norm("last norm", hidden, c.rms_norm_eps, residual=True, indexed=True)
    head = _linear("logits", vocab, hidden, min(rows, batch))
    yield Shape(head.what, "linear_fp32", head.dims)
    for split in SPLITS:
        yield Shape(f"sum of {split}", "split_k_sum", {"N": hidden, "OUT_STRIDE": hidden, "SPLIT_K": split})
        yield Shape(f"logits, sum of {split}", "split_k_sum_fp32", {"N": vocab, "OUT_STRIDE": vocab, "SPLIT_K": split})
    yield Shape("greedy token", "argmax", {"VOCAB": vocab})
    yield Shape("sampled token", "sample", {"VOCAB": vocab})
