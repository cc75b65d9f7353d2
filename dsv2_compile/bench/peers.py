"""What an engine is compared with: transformers on the same checkpoint, eager or compiled, in float32.

``eager`` is the library as it comes: its default attention and experts, a cache that grows. ``compile`` is
torch.compile over the same forward with static shapes and a static cache, the way its documentation
recommends. Time to compile is not measured.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dsv2_compile.bench.engine import BenchReport
from dsv2_compile.bench.machine import machine, own_memory
from dsv2_compile.bench.measure import WARM_STEPS, Ints, Workload, filling, measure
from dsv2_compile.progress import Progress

MODES = ("eager", "compile")
CHUNK = 512
"""New tokens in one call, as the runtime has it: prompts of any length fit in memory."""


def bench_peer(mode: str, checkpoint: str | Path, work: Workload, progress: Progress) -> BenchReport:
    """Measure transformers on ``checkpoint``. Sets torch's thread count: for a process of its own."""
    import torch
    from transformers import DeepseekV2ForCausalLM

    torch.set_num_threads(work.threads)
    progress("load", 0, 0)
    start = time.perf_counter()
    model = DeepseekV2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    loaded = time.perf_counter() - start
    with torch.inference_mode():
        measurements = measure(TransformersSubject(model, mode, work), work, progress)
    memory = own_memory()
    chosen = {k: getattr(model.config, f"_{k}_implementation", None) for k in ("attn", "experts")}
    return BenchReport(
        f"transformers {mode}",
        Path(checkpoint).name,
        machine(),
        work,
        loaded,
        memory["peak_rss"],
        memory["private"],
        measurements,
        (),
        tuple(f"{k}_implementation: {v}" for k, v in chosen.items()),
    )


class TransformersSubject:
    """DeepseekV2ForCausalLM as a `measure.Subject`."""

    def __init__(self, model: Any, mode: str, work: Workload) -> None:
        import torch

        if mode not in MODES:
            raise ValueError(f"no mode {mode!r}")
        self.vocab_size: int = model.config.vocab_size
        self._model, self._compiled, self._work = model, mode == "compile", work
        self._timed = model.forward
        if self._compiled:  # one graph for each length; past the limit torch would run eagerly without a word
            torch._dynamo.config.recompile_limit = 64
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            self._timed = torch.compile(model.forward, dynamic=False)
        self._cache: Any = None
        self._held = 0

    def prefill(self, tokens: Ints) -> Ints:
        self._start(tokens.shape[1])
        return self._append(tokens)

    def at(self, cached: int) -> None:
        """A static cache is as long as attention over it is slow, so it is made anew for every context."""
        import torch

        self._start(cached)
        config = self._model.config
        latent, rope = (
            torch.from_numpy(filling((self._work.batch, 1, cached, width)))
            for width in (config.kv_lora_rank, config.qk_rope_head_dim)
        )
        for layer in range(config.num_hidden_layers):
            self._cache.update(latent, rope, layer)
        self._held = cached

    def decode(self, tokens: Ints) -> Ints:
        return self._append(tokens[:, None])

    def _start(self, positions: int) -> None:
        from transformers import DynamicCache, StaticCache

        config, steps = self._model.config, WARM_STEPS + self._work.decode_steps
        if self._compiled:
            self._cache = StaticCache(config=config, max_cache_len=positions + steps)
        else:
            self._cache = DynamicCache(config=config)
        self._held = 0

    def _append(self, tokens: Ints) -> Ints:
        import torch

        logits: Any = None
        for start in range(0, tokens.shape[1], CHUNK):
            ids = torch.from_numpy(tokens[:, start : start + CHUNK].copy())
            positions = torch.arange(self._held, self._held + ids.shape[1])[None]
            out = self._timed(ids, cache=self._cache, position_ids=positions, use_cache=True, logits_to_keep=1)
            logits = out.logits[:, -1]
            self._held += ids.shape[1]
        top: Ints = logits.argmax(-1).numpy()
        return top
