"""How large a KV cache is. Standard library only: `inspect` tells it without torch."""

from __future__ import annotations

from dsv2_compile.config import ModelConfig

DEEPSEEK_67B_BYTES_PER_TOKEN = 95 * 8 * 128 * 2 * 2
"""KV cache of DeepSeek 67B: 95 layers, 8 KV heads of 128, K and V, 16 bit."""


def kv_bytes_per_token(config: ModelConfig, bits: float) -> float:
    """Bytes cached per token over all layers, at ``bits`` per value."""
    return config.num_hidden_layers * config.cache_dim * bits / 8
