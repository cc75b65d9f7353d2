"""Rotary frequencies of the published model, YaRN included (arXiv 2309.00071, section 3)."""

from __future__ import annotations

import math

import torch

from dsv2_compile.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """fp32 [qk_rope_head_dim / 2] on the CPU.

    YaRN: dims that turn more than beta_fast times over the original context keep their frequency,
    those that turn less than beta_slow times are divided by ``factor``, a linear ramp in between.
    """
    dim, rope = config.qk_rope_head_dim, config.rope
    with torch.device("cpu"):
        powers = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        extrapolated = 1.0 / rope.theta**powers
        if rope.kind != "yarn":
            return extrapolated

        def turning(rotations: float) -> float:
            length = rope.original_max_position_embeddings
            return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

        low = max(math.floor(turning(rope.beta_fast)), 0)
        high = min(math.ceil(turning(rope.beta_slow)), dim - 1)
        ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
        keep = 1.0 - ramp.clamp(0, 1)
        interpolated = 1.0 / (rope.factor * rope.theta**powers)
        return interpolated * (1 - keep) + extrapolated * keep
