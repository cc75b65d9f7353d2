"""The ONNX Runtime backend as a build sees it: float32, one ONNX file a phase."""

from __future__ import annotations

from pathlib import Path

import torch

from dsv2_compile.backends.onnxruntime import Lowered, lower, place
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.compiler import CompileOptions, compile_model
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.manifest import Manifest, ProgramEntry, TensorEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.pipeline.artifact import Artifact
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.progress import Progress
from dsv2_compile.request import BuildRequest
from dsv2_compile.targets import target
from dsv2_compile.verify import Report, make_golden, verify_engine
from dsv2_compile.weights import Recipe

DTYPE = torch.float32
TOOLS = ("torch", "onnx", "onnxruntime", "numpy", "safetensors")


def reads(request: BuildRequest) -> list[Path]:
    return []


def make(config: ModelConfig, request: BuildRequest, progress: Progress) -> Artifact:
    options = CompileOptions(
        target("cpu"),
        request.max_seq_len or config.max_position_embeddings,
        request.mla_form,
        bisect=request.bisect,
        dump=request.dump_ir,
    )
    compiled = compile_model(config, options, lambda text: progress(text, 0, 0))
    lowered = {phase: lower(program, request.portable) for phase, program in compiled.programs.items()}
    return Artifact(
        backend="onnxruntime",
        target="cpu",
        dtype=DTYPE,
        compiled=compiled,
        recipes=_union(lowered),
        entries={p: _entry(program, lowered[p]) for p, program in compiled.programs.items()},
        files=lambda placement: {
            f"{phase}.onnx": place(part.model, placement).SerializeToString(deterministic=True)
            for phase, part in lowered.items()
        },
        tools=TOOLS,
        nbytes=sum(part.model.ByteSize() for part in lowered.values()),
    )


def verify(
    writer: EngineWriter, manifest: Manifest, checkpoint: Checkpoint, request: BuildRequest, progress: Progress
) -> Report:
    """The staged engine, as a user would load it."""
    golden = make_golden(
        manifest.model, checkpoint, manifest.dtype, manifest.max_batch_size, manifest.max_seq_len, progress=progress
    )
    golden.write(writer)
    writer.seal(manifest)
    return verify_engine(writer.stage, progress=progress)


def _union(lowered: dict[str, Lowered]) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for part in lowered.values():
        for name, recipe in part.weights.items():
            if recipes.setdefault(name, recipe) != recipe:
                raise AssertionError(f"two programs give weight {name} different recipes")
    return dict(sorted(recipes.items()))


def tensor(spec: TensorSpec) -> TensorEntry:
    dims = tuple(d if isinstance(d, int) else str(d) for d in spec.shape)
    return TensorEntry(str(spec.dtype).removeprefix("torch."), dims)


def _entry(program: Program, part: Lowered) -> ProgramEntry:
    layer = program.outputs["rows.0"]
    rows = TensorSpec((program.config.num_hidden_layers, *layer.shape), layer.dtype)
    return ProgramEntry(
        f"{program.phase}.onnx",
        {name: tensor(spec) for name, spec in program.inputs.items()},
        {"logits": tensor(program.outputs["logits"]), "rows": tensor(rows)},
        program.notes["mla_form"],
        part.session_options,
    )
