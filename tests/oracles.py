"""The independent oracle: transformers' DeepSeek-V2 writes random checkpoints and runs them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.config import ModelConfig
from dsv2_compile.model import reference

_BASE: dict[str, Any] = dict(
    vocab_size=160,
    hidden_size=48,
    intermediate_size=72,
    moe_intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=None,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=3,
    first_k_dense_replace=1,
    routed_scaling_factor=1.0,
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    max_position_embeddings=256,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    bos_token_id=0,
    eos_token_id=1,
)


def _yarn(factor: float, original: int, mscale: float) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": factor,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": mscale,
        "mscale_all_dim": mscale,
        "original_max_position_embeddings": original,
    }


_GROUPS = dict(topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=16.0)
CONFIGS: dict[str, dict[str, Any]] = {
    "v2": dict(q_lora_rank=24, n_routed_experts=16, rope_parameters=_yarn(40, 64, 1.0), **_GROUPS),
    "lite": dict(rope_parameters=_yarn(40, 64, 0.707), num_hidden_layers=4),
    "odd": dict(
        num_attention_heads=3,
        num_key_value_heads=3,
        hidden_size=45,
        kv_lora_rank=20,
        qk_nope_head_dim=10,
        v_head_dim=14,
        qk_rope_head_dim=6,
        moe_intermediate_size=18,
        n_routed_experts=7,
    ),
    "no_shared": dict(n_shared_experts=0),
    "dense3": dict(first_k_dense_replace=3, num_hidden_layers=5),
    "yarn_far": dict(rope_parameters=_yarn(40, 4096, 1.0), max_position_embeddings=163840, q_lora_rank=20, prompt=4200),
    "batch3": dict(batch=3, q_lora_rank=24, rope_parameters=_yarn(4, 64, 0.707)),
    "one_group": dict(topk_method="group_limited_greedy", n_group=1, topk_group=1, routed_scaling_factor=2.5),
    "top1": dict(num_experts_per_tok=1, n_routed_experts=5, tie_word_embeddings=True),
    "unequal_mscale": dict(rope_parameters={**_yarn(8, 32, 1.0), "mscale": 0.5}),
}
RUN_KEYS = ("batch", "prompt")
RARER = frozenset({"batch3", "no_shared", "one_group", "unequal_mscale"})
"""Of which whole engines are built only by the slow tests; the reference is held to transformers for all."""


def parameters(names: Iterable[str]) -> list[Any]:
    """Of a test over whole engines."""
    return [pytest.param(name, marks=pytest.mark.slow if name in RARER else ()) for name in names]


def transformers_checkpoint(
    name: str, directory: Path, **changes: Any
) -> tuple[Any, ModelConfig, reference.LazyWeights]:
    """A random model of configuration ``name``, saved by transformers; -> (their model, config, our weights)."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    settings = {k: v for k, v in {**_BASE, **CONFIGS[name], **changes}.items() if k not in RUN_KEYS}
    torch.manual_seed(sorted(CONFIGS).index(name))
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**settings)).eval()
    model.set_experts_implementation("eager")  # the grouped one asks for rows of whole 16 bytes
    with torch.no_grad():
        for p_name, p in model.named_parameters():
            if "norm" in p_name:
                p.uniform_(0.7, 1.3)
            elif p.dim() > 1 and p.numel():
                p.normal_(0, 1.2 / p.shape[-1] ** 0.5)
    model.save_pretrained(directory)
    checkpoint = Checkpoint.open(directory)
    config = checkpoint.config
    positions = min(config.max_position_embeddings, 8192)
    return model, config, cached(reference.LazyWeights(checkpoint, config, torch.float32, positions))


def cached(weights: reference.LazyWeights) -> Any:
    return dict(weights.items())


def run_settings(name: str) -> tuple[int, int]:
    return CONFIGS[name].get("batch", 1), CONFIGS[name].get("prompt", 40)


@torch.no_grad()
def their_logits(model: Any, tokens: torch.Tensor, lengths: list[int], steps: torch.Tensor) -> torch.Tensor:
    """[B, 1 + steps, vocab]: after the prompt, then after each forced token. One full pass per row, no cache."""
    rows = []
    for b, n in enumerate(lengths):
        whole = torch.cat((tokens[b, :n], steps[b]))[None]
        rows.append(model(whole, use_cache=False).logits[0, n - 1 :])
    return torch.stack(rows).float()


@torch.no_grad()
def prefill_and_decode(
    model: Any, config: ModelConfig, weights: Any, steps: int, name: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced logits of transformers and of the reference, [B, 1 + steps, vocab] each."""
    batch, prompt = _settings_of(config)
    tokens = torch.randint(2, config.vocab_size, (batch, prompt))
    lengths = [prompt - 7 * b for b in range(batch)]
    forced = torch.randint(2, config.vocab_size, (batch, steps))
    expected = their_logits(model, tokens, lengths, forced)
    return expected, our_logits(config, weights, tokens, lengths, forced)


def _settings_of(config: ModelConfig) -> tuple[int, int]:
    if config.max_position_embeddings > 100_000:
        return 1, CONFIGS["yarn_far"]["prompt"]
    return (3, 40) if config.q_lora_rank == 24 and not config.grouped else (1, 40)


@torch.no_grad()
def our_logits(config: ModelConfig, weights: Any, tokens: Any, lengths: list[int], forced: Any) -> torch.Tensor:
    batch, prompt = tokens.shape
    total = prompt + forced.shape[1]
    caches = [torch.zeros(batch, total, config.cache_dim) for _ in range(config.num_hidden_layers)]
    past = torch.zeros(batch, dtype=torch.int64)
    out = []

    def step(new: torch.Tensor, count: torch.Tensor) -> None:
        width = int(past.max())
        logits, rows = reference.forward(config, weights, new, past, count, [c[:, :width] for c in caches])
        for cache, row in zip(caches, rows, strict=True):
            for b in range(batch):
                cache[b, past[b] : past[b] + count[b]] = row[b, : count[b]]
        past.add_(count)
        out.append(logits)

    step(tokens, torch.tensor(lengths))
    for i in range(forced.shape[1]):
        step(forced[:, i : i + 1], torch.ones(batch, dtype=torch.int64))
    return torch.stack(out, 1)


@torch.no_grad()
def our_greedy(config: ModelConfig, weights: Any, prompt: torch.Tensor, count: int) -> list[int]:
    caches = [torch.zeros(1, 0, config.cache_dim) for _ in range(config.num_hidden_layers)]
    new, out = prompt, []
    for _ in range(count):
        past = torch.tensor([caches[0].shape[1]])
        logits, rows = reference.forward(config, weights, new, past, torch.tensor([new.shape[1]]), caches)
        caches = [torch.cat(pair, 1) for pair in zip(caches, rows, strict=True)]
        new = logits.argmax(-1, keepdim=True)
        out.append(int(new))
    return out


def write_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
