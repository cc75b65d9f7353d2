"""Small models compiled to real ONNX Runtime programs, with places to spoil them on the way.

The export of a config is made once for the process and copied as text: a compilation then takes a fraction of
a second. Weights are bfloat16 values, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from dsv2_compile.backends.onnxruntime import Lowered, lower, place
from dsv2_compile.config import ModelConfig, RopeConfig
from dsv2_compile.engine.manifest import ProgramEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.export import PHASES, export
from dsv2_compile.ir_text import parse_program, program_text
from dsv2_compile.passes.pipeline import check_lowerable, pipeline, run
from dsv2_compile.program import Program
from dsv2_compile.runtime.ort import Program as Loaded
from dsv2_compile.verify import golden
from dsv2_compile.verify.golden import Golden
from dsv2_compile.verify.passes import RandomWeights
from dsv2_compile.weights import Recipe

POSITIONS = 96
BATCH = 3
SMALL = ModelConfig(
    vocab_size=97, hidden_size=40, num_hidden_layers=4, num_attention_heads=3, q_lora_rank=20, kv_lora_rank=16,
    qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12, intermediate_size=32, first_k_dense_replace=1,
    moe_intermediate_size=12, n_routed_experts=12, n_shared_experts=1, num_experts_per_tok=3,
    topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=2.5, rms_norm_eps=1e-5,
    max_position_embeddings=256,
    rope=RopeConfig(kind="yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.0),
)  # fmt: skip
"""Wherever two dims could be taken for each other without an error of shape, they are equal; every constant
differs from the one it could be taken for."""
FORMS = {"prefill": "expanded", "decode": "absorbed"}


class Weights(RandomWeights):
    """A checkpoint of random bfloat16 values, held in fp64."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.tensors = {k: t.bfloat16().double() for k, t in self.tensors.items()}


@dataclass
class Engine:
    """What `verify.check.check` and a session need."""

    config: ModelConfig
    max_seq_len: int
    programs: dict[str, Loaded]

    def program(self, phase: str) -> Loaded:
        return self.programs[phase]


@dataclass(frozen=True)
class Spoil:
    """What to do to the fused program of a phase, and to the recipes by name, before lowering."""

    program: Callable[[Program], None] = lambda program: None
    recipe: Mapping[str, Callable[[Recipe], Recipe]] = field(default_factory=dict)


@cache
def exported(config: ModelConfig, phase: str, dtype: torch.dtype = torch.float32) -> str:
    return program_text(export(config, phase, dtype, POSITIONS))


def naive(config: ModelConfig, phase: str, dtype: torch.dtype = torch.float32) -> Program:
    return parse_program(exported(config, phase, dtype), config, phase)


def fused(config: ModelConfig, phase: str, forms: Mapping[str, str] = FORMS) -> Program:
    program = naive(config, phase)
    run(program, pipeline(forms=dict(forms)))
    check_lowerable(program)
    return program


def lowered(config: ModelConfig, spoil: Spoil = Spoil(), forms: Mapping[str, str] = FORMS) -> dict[str, Lowered]:
    out = {}
    for phase in PHASES:
        program = fused(config, phase, forms)
        spoil.program(program)
        for name, change in spoil.recipe.items():
            if name in program.weights.recipes:
                program.weights.recipes[name] = change(program.weights[name])
        program.graph.lint()
        out[phase] = lower(program)
    return out


def build(
    folder: Path,
    config: ModelConfig = SMALL,
    source: RandomWeights | None = None,
    spoil: Spoil = Spoil(),
    forms: Mapping[str, str] = FORMS,
    parts: Mapping[str, Lowered] | None = None,
) -> Engine:
    """Both programs over one weights file in ``folder``, loaded. ``parts``: what `lowered` gave, to use again."""
    parts = parts or lowered(config, spoil, forms)
    recipes = {name: r for part in parts.values() for name, r in part.weights.items()}
    with EngineWriter(folder / "engine") as writer:
        placement = writer.write_weights(recipes, source or Weights(config), torch.float32)
        programs = {}
        for phase, part in parts.items():
            writer.add_bytes(f"{phase}.onnx", place(part.model, placement).SerializeToString())
            entry = ProgramEntry(f"{phase}.onnx", {}, {}, forms[phase], part.session_options)
            programs[phase] = Loaded(writer.stage / entry.file, entry, config, threads=1)
    return Engine(config, POSITIONS, programs)


def golden_of(config: ModelConfig, source: RandomWeights, seed: int = 0) -> Golden:
    return golden.make(config, source, "float32", BATCH, POSITIONS, seed)


@cache
def small_golden() -> Golden:
    """Of `SMALL` with its default weights."""
    return golden_of(SMALL, Weights(SMALL))


def without(config: ModelConfig, **changes: object) -> ModelConfig:
    return replace(config, **changes)  # type: ignore[arg-type]
