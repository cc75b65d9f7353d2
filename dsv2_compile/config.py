"""The model description every stage reads. Standard library only: the runtime imports it too."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding. ``kind`` is ``default`` or ``yarn``; the other fields matter for yarn."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    @staticmethod
    def _mscale(factor: float, mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    @property
    def attention_factor(self) -> float:
        """Factor on cos and sin: yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)."""
        if self.kind != "yarn":
            return 1.0
        return self._mscale(self.factor, self.mscale) / self._mscale(self.factor, self.mscale_all_dim)

    @property
    def softmax_factor(self) -> float:
        """Factor on the softmax scale: yarn_mscale(factor, mscale_all_dim)^2."""
        if self.kind != "yarn" or not self.mscale_all_dim:
            return 1.0
        return self._mscale(self.factor, self.mscale_all_dim) ** 2


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V2 model, with the names of the published config.json.

    ``q_lora_rank`` is None for the Lite versions; ``n_shared_experts`` may be 0;
    ``first_k_dense_replace`` leading layers have a dense MLP of ``intermediate_size``.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    first_k_dense_replace: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    topk_method: str = "greedy"
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = False
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 163840
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    rope: RopeConfig = RopeConfig()

    LATENT_NORM_EPS = 1e-6  # q_a_layernorm and kv_a_layernorm, whatever rms_norm_eps says

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_dim(self) -> int:
        """Values cached per token and layer: the normed latent and the rotated shared key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        return float(self.qk_head_dim**-0.5 * self.rope.softmax_factor)

    @property
    def grouped(self) -> bool:
        return self.topk_method == "group_limited_greedy"

    def is_moe(self, layer: int) -> bool:
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        data = dict(data)
        data["rope"] = RopeConfig(**data["rope"])
        data["eos_token_ids"] = tuple(data["eos_token_ids"])
        return cls(**data)

    def twin(self) -> ModelConfig:
        """The same structure at toy size, every dim distinct, for fp64 checks of the passes.

        What takes all experts, or all groups, does so here too: the graph is another one then.
        """
        grouped = self.grouped
        yarn = self.rope.kind == "yarn"
        dense = min(self.first_k_dense_replace, self.num_hidden_layers, 1)
        moe = 2 if self.n_routed_experts and self.num_hidden_layers > self.first_k_dense_replace else 1
        experts = 12 if grouped else 7
        groups = min(self.n_group, 4) if grouped else 1
        whole = self.num_experts_per_tok == self.n_routed_experts
        return replace(
            self,
            vocab_size=61,
            hidden_size=44,
            num_hidden_layers=dense + moe,
            num_attention_heads=3,
            q_lora_rank=None if self.q_lora_rank is None else 26,
            kv_lora_rank=20,
            qk_nope_head_dim=10,
            qk_rope_head_dim=8,
            v_head_dim=14,
            intermediate_size=36,
            first_k_dense_replace=dense if moe == 2 else dense + moe,
            moe_intermediate_size=18,
            n_routed_experts=experts if self.n_routed_experts else 0,
            n_shared_experts=min(self.n_shared_experts, 2),
            num_experts_per_tok=experts if whole and self.n_routed_experts else min(self.num_experts_per_tok, 3),
            n_group=groups,
            topk_group=groups if self.topk_group == self.n_group else min(self.topk_group, 2),
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_ids=(1,),
            rope=replace(self.rope, original_max_position_embeddings=16 if yarn else 512),
        )
