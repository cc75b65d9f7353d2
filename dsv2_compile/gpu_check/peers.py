"""transformers' own DeepSeek-V2 of the same dims and random weights: a decode step, eager and compiled."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dsv2_compile.checkpoint.presets import published_config
from dsv2_compile.config import ModelConfig

MODES = ("eager", "compile")
WARM = 3
MOST_STEPS = 24
"""Timed steps of a point; a static cache has room for no more."""


class Peer:
    """``mode``: eager is the library as it comes, over a cache that grows; compile is torch.compile with CUDA graphs
    over a static cache of the context's length. ``dry``: torch.compile changes nothing."""

    def __init__(self, config: ModelConfig, mode: str, where: torch.device, dry: bool) -> None:
        from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

        self._mode, self._where = mode, where
        made = DeepseekV2Config.from_dict(published_config(config, "bfloat16"))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with where:
                self._model: Any = DeepseekV2ForCausalLM(made).eval()
        finally:
            torch.set_default_dtype(before)
        names = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._forward = self._model.forward
        if mode == "compile":
            how: dict[str, Any] = {"disable": True} if dry else {"mode": "reduce-overhead"}
            self._forward = torch.compile(self._model.forward, dynamic=False, **how)

    @torch.no_grad()
    def step_ms(self, batch: int, context: int, seconds: float, most: int) -> list[float]:
        """Milliseconds of steps that add a token to each of ``batch`` sequences of ``context`` random positions."""
        cache = self._filled(batch, context)
        tokens = torch.randint(self._model.config.vocab_size, (batch, 1), device=self._where)
        at = iter(range(context, context + WARM + MOST_STEPS + 1))

        def step() -> None:
            positions = torch.full((1, 1), next(at), device=self._where)
            options = {self._cache_name: cache, "position_ids": positions, "use_cache": True, "logits_to_keep": 1}
            self._forward(tokens, **options)

        for _ in range(WARM):
            step()
        return list(self._timed(step, seconds, min(most, MOST_STEPS)))

    def _timed(self, step: Any, seconds: float, most: int) -> Iterator[float]:
        spent = 0.0
        for i in range(most):
            if i >= 3 and spent > seconds * 1e3:
                return
            self._wait()
            begin = time.perf_counter()
            step()
            self._wait()
            spent += (ms := (time.perf_counter() - begin) * 1e3)
            yield ms

    def _wait(self) -> None:
        if self._where.type == "cuda":
            torch.cuda.synchronize()

    def _filled(self, batch: int, context: int) -> Any:
        from transformers import DynamicCache, StaticCache

        c = self._model.config
        if self._mode == "compile":
            cache: Any = StaticCache(config=c, max_cache_len=context + WARM + MOST_STEPS + 1)
        else:
            cache = DynamicCache(config=c)
        for layer in range(c.num_hidden_layers):
            widths: Sequence[int] = (c.kv_lora_rank, c.qk_rope_head_dim)
            rows = [torch.randn(batch, 1, context, w, dtype=torch.bfloat16, device=self._where) for w in widths]
            cache.update(*rows, layer)
        return cache
