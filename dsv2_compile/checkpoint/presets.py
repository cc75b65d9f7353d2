"""Named model sizes, and the config.json that a published checkpoint of one would have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dsv2_compile.checkpoint.config_json import parse
from dsv2_compile.config import ModelConfig, RopeConfig
from dsv2_compile.errors import ModelError, UsageError

_YARN = RopeConfig(kind="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0)
_SHORT_YARN = replace(_YARN, factor=8.0, original_max_position_embeddings=512)

PRESETS: dict[str, ModelConfig] = {
    "v2": ModelConfig(
        vocab_size=102400,
        hidden_size=5120,
        num_hidden_layers=60,
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=12288,
        first_k_dense_replace=1,
        moe_intermediate_size=1536,
        n_routed_experts=160,
        n_shared_experts=2,
        num_experts_per_tok=6,
        topk_method="group_limited_greedy",
        n_group=8,
        topk_group=3,
        routed_scaling_factor=16.0,
        bos_token_id=100000,
        eos_token_ids=(100001,),
        rope=_YARN,
    ),
    "lite": ModelConfig(
        vocab_size=102400,
        hidden_size=2048,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=10944,
        first_k_dense_replace=1,
        moe_intermediate_size=1408,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        bos_token_id=100000,
        eos_token_ids=(100001,),
        rope=replace(_YARN, mscale=0.707, mscale_all_dim=0.707),
    ),
    "tiny": ModelConfig(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        intermediate_size=512,
        first_k_dense_replace=1,
        moe_intermediate_size=96,
        n_routed_experts=16,
        n_shared_experts=2,
        num_experts_per_tok=4,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=16.0,
        max_position_embeddings=4096,
        bos_token_id=2046,
        eos_token_ids=(2047,),
        rope=_SHORT_YARN,
    ),
    "tiny-lite": ModelConfig(
        vocab_size=2048,
        hidden_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        q_lora_rank=None,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        intermediate_size=384,
        first_k_dense_replace=1,
        moe_intermediate_size=96,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        max_position_embeddings=4096,
        bos_token_id=2046,
        eos_token_ids=(2047,),
        rope=replace(_SHORT_YARN, mscale=0.707, mscale_all_dim=0.707),
    ),
}
"""``v2`` and ``lite`` are the published sizes; ``tiny`` and ``tiny-lite`` have the same structure."""

SHORT_NAMES = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "experts": "n_routed_experts",
    "shared_experts": "n_shared_experts",
    "experts_per_token": "num_experts_per_tok",
    "vocab": "vocab_size",
    "eos_token_id": "eos_token_ids",
}
_OVERRIDABLE = {f.name for f in fields(ModelConfig)} - {"rope"}


def configure(preset: str, overrides: Mapping[str, Any]) -> ModelConfig:
    """``preset`` with ``overrides``, keyed by the fields of `ModelConfig` or by `SHORT_NAMES`.

    A smaller vocabulary moves the bos and eos tokens to its end. UsageError for a name that does not
    exist, and for settings that the reader of checkpoints would refuse.
    """
    if preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", f"Choose one of {', '.join(PRESETS)}.")
    changes = {SHORT_NAMES.get(name, name): value for name, value in overrides.items()}
    if unknown := sorted(changes.keys() - _OVERRIDABLE):
        raise UsageError(
            f"A model has no setting {', '.join(unknown)}.",
            f"Choose from {', '.join([*SHORT_NAMES, *sorted(_OVERRIDABLE)])}.",
        )
    config = replace(PRESETS[preset], **changes)
    if isinstance(config.eos_token_ids, int):
        config = replace(config, eos_token_ids=(config.eos_token_ids,))
    elif isinstance(config.vocab_size, int) and not {"bos_token_id", "eos_token_ids"} & changes.keys():
        last = config.vocab_size - 1
        if last < max(config.eos_token_ids):
            config = replace(config, bos_token_id=last - 1, eos_token_ids=(last,))
    try:
        parse(json.dumps(published_config(config, "bfloat16")).encode())
    except ModelError as e:
        raise UsageError("These settings make no model.", "Change the settings named above.", e.problems) from None
    return config


def published_config(c: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json as the published checkpoints have it, with ``rope_theta`` and ``rope_scaling``."""
    rope = None
    if c.rope.kind == "yarn":
        rope = {
            "beta_fast": c.rope.beta_fast,
            "beta_slow": c.rope.beta_slow,
            "factor": c.rope.factor,
            "mscale": c.rope.mscale,
            "mscale_all_dim": c.rope.mscale_all_dim,
            "original_max_position_embeddings": c.rope.original_max_position_embeddings,
            "type": "yarn",
        }
    eos = list(c.eos_token_ids) or None
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": eos[0] if eos and len(eos) == 1 else eos,
        "ep_size": 1,
        "first_k_dense_replace": c.first_k_dense_replace,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": c.intermediate_size,
        "kv_lora_rank": c.kv_lora_rank,
        "max_position_embeddings": c.max_position_embeddings,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": c.moe_intermediate_size,
        "moe_layer_freq": 1,
        "n_group": c.n_group,
        "n_routed_experts": c.n_routed_experts or None,
        "n_shared_experts": c.n_shared_experts or None,
        "norm_topk_prob": c.norm_topk_prob,
        "num_attention_heads": c.num_attention_heads,
        "num_experts_per_tok": c.num_experts_per_tok,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_attention_heads,
        "pretraining_tp": 1,
        "q_lora_rank": c.q_lora_rank,
        "qk_nope_head_dim": c.qk_nope_head_dim,
        "qk_rope_head_dim": c.qk_rope_head_dim,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": rope,
        "rope_theta": c.rope.theta,
        "routed_scaling_factor": c.routed_scaling_factor,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": c.tie_word_embeddings,
        "topk_group": c.topk_group,
        "topk_method": c.topk_method,
        "torch_dtype": dtype,
        "use_cache": True,
        "v_head_dim": c.v_head_dim,
        "vocab_size": c.vocab_size,
    }
