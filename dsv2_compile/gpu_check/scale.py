"""The shapes that are timed: the published models on a GPU, toys of the same structure on the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.config import ModelConfig
from dsv2_compile.gpu_check.options import Options, Row
from dsv2_compile.kernels.gpu.kernel import KERNELS, Config, Dims, Kernel
from dsv2_compile.kernels.gpu.shapes import Shape, shapes
from dsv2_compile.pipeline.cuda_plan import PREFILL_ROWS
from dsv2_compile.targets import Target


@dataclass(frozen=True)
class Scale:
    """``linear_rows``, ``expert_rows``: new tokens. ``prefills``: sequences and tokens of each. ``cold``: bytes that a
    rotation covers at least, several times the L2, and ``rotated`` copies. ``seconds``: of measuring a row, ``most``
    replays. ``linears``: layers of a model at most, None for all. ``model``: what is timed as a whole."""

    models: dict[str, ModelConfig]
    model: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    model_contexts: tuple[int, ...]
    linear_rows: tuple[int, ...]
    expert_rows: tuple[int, ...]
    prefills: tuple[tuple[int, int], ...]
    cold: int
    rotated: int
    seconds: float
    most: int
    linears: int | None = None


FULL = Scale(
    models={name: PRESETS[name] for name in ("lite", "v2")},
    model="lite",
    batches=(1, 8, 32, 128),
    contexts=(1 << 10, 1 << 13, 1 << 15, 1 << 17),
    model_contexts=(1 << 10, 1 << 13),
    linear_rows=(1, 8, 32, 128, 4096),
    expert_rows=(1, 8, 32, 128, 512, 4096),
    prefills=((1, 4096), (8, 2048)),
    cold=192 << 20,
    rotated=3,
    seconds=0.3,
    most=60,
)
TOY = Scale(
    models={
        "toy": replace(
            PRESETS["tiny-lite"],
            num_hidden_layers=2,
            vocab_size=512,
            hidden_size=64,
            num_attention_heads=2,
            kv_lora_rank=32,
            intermediate_size=64,
            moe_intermediate_size=32,
            bos_token_id=1,
            eos_token_ids=(2,),
        )
    },
    model="toy",
    batches=(2,),
    contexts=(70,),
    model_contexts=(9,),
    linear_rows=(1,),
    expert_rows=(3,),
    prefills=((2, 5),),
    cold=0,
    rotated=2,
    seconds=0.0,
    most=1,
    linears=1,
)
MOST_COPIES, FEW_BYTES = 256, 4 << 30
"""Of what is rotated; up to so many bytes there are `Scale.rotated` in any case."""


def scale(options: Options) -> Scale:
    return TOY if options.host else FULL


@dataclass(frozen=True)
class Step:
    """A launch but for its tensors."""

    kernel: Kernel
    dims: Dims
    config: Config


def step(name: str, dims: Dims, target: Target) -> Step:
    """Kernel ``name`` with its default configuration."""
    kernel = KERNELS[name]
    return Step(kernel, dims, kernel.default(dims, target))


def hint(rows: int) -> int:
    """How many rows the program that takes ``rows`` is made for."""
    return min(rows, PREFILL_ROWS)


def shape_of(config: ModelConfig, what: str, rows: int, batch: int = 1, parts: int = 1) -> Shape:
    return next(s for s in shapes(config, hint(rows), batch, parts) if s.what == what)


def copies(s: Scale, nbytes: int) -> int:
    """How many copies of ``nbytes`` are rotated, so that none is still in the cache when its turn comes."""
    return max(1, min(-(-s.cold // nbytes), MOST_COPIES), s.rotated if s.rotated * nbytes <= FEW_BYTES else 1)


def items(s: Scale) -> Iterator[Row]:
    """Every row of part c, what matters most first."""
    for model in s.models:
        for context in s.contexts:
            for batch in s.batches:
                yield {"kind": "decode", "model": model, "batch": batch, "context": context}
    for model in s.models:
        for rows in s.expert_rows:
            for routing in ("uniform", "zipf"):
                yield {"kind": "experts", "model": model, "rows": rows, "routing": routing}
    for model in s.models:
        for batch, tokens in s.prefills:
            yield {"kind": "prefill", "model": model, "batch": batch, "context": tokens}
    for rows in s.linear_rows:
        for model, config in s.models.items():
            for what in linears(config, rows)[: s.linears]:
                yield {"kind": "linear", "model": model, "rows": rows, "layer": what}


LINEARS = ("linear", "linear_fp32", "linear_swiglu", "head_linear")


def linears(config: ModelConfig, rows: int) -> list[str]:
    """The linear layers of a step of ``rows`` tokens. Keys and values are expanded by prefill alone, which has no
    absorbed products and logits of few rows."""
    decode = rows < PREFILL_ROWS
    left_out = ("keys and values",) if decode else ("logits", "queries to the latent", "latent to values")
    return [s.what for s in shapes(config, hint(rows)) if s.kernel in LINEARS and s.what not in left_out]
