"""Names and shapes: the published checkpoint layout, and the weights of the naive model over it."""

from __future__ import annotations

from dsv2_compile.config import ModelConfig
from dsv2_compile.weights import Concat, Recipe, RopeTable, Source, Stack, WeightTable


def layer_tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Tensors of one layer as published, per expert, in the order the model reads them."""
    c = config
    h, heads = c.hidden_size, c.num_attention_heads
    out: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (h,)}
    if c.q_lora_rank is None:
        out["self_attn.q_proj.weight"] = (heads * c.qk_head_dim, h)
    else:
        out["self_attn.q_a_proj.weight"] = (c.q_lora_rank, h)
        out["self_attn.q_a_layernorm.weight"] = (c.q_lora_rank,)
        out["self_attn.q_b_proj.weight"] = (heads * c.qk_head_dim, c.q_lora_rank)
    out["self_attn.kv_a_proj_with_mqa.weight"] = (c.cache_dim, h)
    out["self_attn.kv_a_layernorm.weight"] = (c.kv_lora_rank,)
    out["self_attn.kv_b_proj.weight"] = (heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
    out["self_attn.o_proj.weight"] = (h, heads * c.v_head_dim)
    out["post_attention_layernorm.weight"] = (h,)
    if c.is_moe(layer):
        out["mlp.gate.weight"] = (c.n_routed_experts, h)
        for e in range(c.n_routed_experts):
            out |= _mlp(f"mlp.experts.{e}", h, c.moe_intermediate_size)
        if c.n_shared_experts:
            out |= _mlp("mlp.shared_experts", h, c.n_shared_experts * c.moe_intermediate_size)
    else:
        out |= _mlp("mlp", h, c.intermediate_size)
    return {f"model.layers.{layer}.{k}": v for k, v in out.items()}


def _mlp(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def checkpoint_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published layout; no lm_head where the embeddings are tied."""
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        out |= layer_tensors(config, layer)
    out["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return out


def naive_weights(config: ModelConfig, positions: int) -> WeightTable:
    """Recipes of the naive model: checkpoint tensors, experts stacked, rope tables of ``positions`` rows."""
    shapes = checkpoint_tensors(config)
    table = WeightTable({})
    for name, shape in shapes.items():
        if ".mlp.experts." not in name:
            table.add(name, Source(name, shape))
    for layer in range(config.num_hidden_layers):
        if config.is_moe(layer):
            prefix = f"model.layers.{layer}.mlp.experts"

            def part(expert: int, name: str, prefix: str = prefix) -> Recipe:
                full = f"{prefix}.{expert}.{name}_proj.weight"
                return Source(full, shapes[full])

            experts = range(config.n_routed_experts)
            gate_up = Stack(tuple(Concat((part(e, "gate"), part(e, "up"))) for e in experts))
            table.add(f"{prefix}.gate_up_proj", gate_up)
            table.add(f"{prefix}.down_proj", Stack(tuple(part(e, "down") for e in experts)))
    if config.tie_word_embeddings:
        table.add("lm_head.weight", table["model.embed_tokens.weight"])
    for function in ("cos", "sin"):
        table.add(f"rope.{function}", RopeTable(config, function, positions))
    return table
