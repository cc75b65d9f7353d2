"""Random weights, fast, and scaled so that a deep model computes something: activations of order one.

Values are quantiles: 16 random bits pick one of 65536 equally likely values of a normal distribution,
already scaled and rounded to the dtype. Random bits come from SFC64, whose stream numpy keeps stable.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BLOCK = 1 << 20
"""Values made from one seed; a multiple of 4."""
_WORKERS = 2
_AHEAD = 8

QUERY_GAIN = 1.25
ROUTER_GAIN = 1.5
LOGIT_GAIN = 3.0
EXPERT_GAIN = 4.0


def scale(name: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[float, float]:
    """Mean and standard deviation of a published tensor.

    A projection keeps the size of its input: 1 / sqrt(fan in). What is added to the residual stream is
    smaller by sqrt(layers), so that the sum over all layers is of the size of the embedding. Attention
    scores, router logits and output logits spread enough to prefer something; the routed experts' sum,
    weighted by probabilities times routed_scaling_factor, is brought back to order one.
    """
    if "norm" in name:
        return 1.0, 0.15
    if name == "model.embed_tokens.weight" and not config.tie_word_embeddings:
        return 0.0, 1.0
    gain = 1.0
    match name.split(".")[-2]:
        case "embed_tokens" | "lm_head":
            gain = LOGIT_GAIN
        case "gate":
            gain = ROUTER_GAIN
        case "q_proj" | "q_b_proj":
            gain = QUERY_GAIN
        case "o_proj":
            gain = config.num_hidden_layers**-0.5
        case "down_proj":
            gain = config.num_hidden_layers**-0.5
            if ".experts." in name:
                gain *= EXPERT_GAIN / config.routed_scaling_factor
    return 0.0, gain / math.sqrt(shape[-1])


def blocks(tensors: Mapping[str, tuple[int, ...]], config: ModelConfig, dtype: str, seed: int) -> Iterator[memoryview]:
    """The bytes of ``tensors``, little-endian, one after the other, in blocks made ahead by two threads."""
    waiting: deque[Future[memoryview]] = deque()
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for name, shape in tensors.items():
                count = math.prod(shape)
                mean, std = scale(name, shape, config)
                for start in range(0, count, BLOCK):
                    size = min(BLOCK, count - start)
                    waiting.append(pool.submit(_block, name, start // BLOCK, size, mean, std, dtype, seed))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _block(name: str, index: int, size: int, mean: float, std: float, dtype: str, seed: int) -> memoryview:
    key = hashlib.sha256(f"{seed} {index} {name}".encode()).digest()
    words = np.random.SFC64(np.frombuffer(key, "<u4")).random_raw(-(-size // 4))
    picks = words.astype("<u8", copy=False).view("<u2")[:size]
    return memoryview(_table(mean, std, dtype)[picks].view(np.uint8))


@lru_cache(64)
def _table(mean: float, std: float, dtype: str) -> NDArray[np.unsignedinteger]:
    """[65536] bit patterns of the scaled quantiles in ``dtype``."""
    values = torch.from_numpy(mean + std * _quantiles()).to(DTYPES[dtype])
    size = values.element_size()
    return values.view(torch.uint8).numpy().view(f"<u{size}")


@lru_cache(1)
def _quantiles() -> NDArray[np.float64]:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])
