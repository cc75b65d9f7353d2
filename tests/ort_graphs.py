"""Small programs for the ONNX Runtime tests: built operator by operator, run three ways."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file
from torch import fx

from dsv2_compile.backends.onnxruntime import Lowered, lower, place
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.placement import Placement
from dsv2_compile.evaluate import evaluate
from dsv2_compile.kernels.dialect import OPS
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.weights import Recipe, Source, Stack, WeightTable

LITE = ModelConfig(
    vocab_size=61, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, q_lora_rank=None, kv_lora_rank=10,
    qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, intermediate_size=18, first_k_dense_replace=1,
    moe_intermediate_size=7, n_routed_experts=5, n_shared_experts=1, num_experts_per_tok=2,
)  # fmt: skip


class Graph:
    """Builds a program node by node: specs of dialect operators come from their own shape rules."""

    def __init__(self, config: ModelConfig = LITE, phase: str = "prefill") -> None:
        self.config, self.phase = config, phase
        self.graph = fx.Graph()
        self.inputs: dict[str, TensorSpec] = {}
        self.table = WeightTable({})

    def input(self, name: str, *shape: Any, dtype: torch.dtype = torch.float32) -> fx.Node:
        node = self.graph.create_node("placeholder", name, name=name.replace(".", "_"))
        node.meta["spec"] = self.inputs[name] = TensorSpec(shape, dtype)
        return node

    def weight(self, name: str, *shape: int, recipe: Recipe | None = None) -> fx.Node:
        self.table.add(name, recipe or Source(name, shape))
        node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        node.meta["spec"] = TensorSpec(shape, torch.float32)
        return node

    def expert_weight(self, name: str, *shape: int) -> fx.Node:
        """[E, ...] as a stack of one checkpoint tensor per expert."""
        parts = tuple(Source(f"{name}.{e}", shape[1:]) for e in range(shape[0]))
        return self.weight(name, *shape, recipe=Stack(parts))

    def op(self, target: Any, *args: Any, shape: Sequence[Any] | None = None, **kwargs: Any) -> fx.Node:
        """A call; ``shape`` for ATen operators, whose dtype is that of the first tensor (or int64)."""
        node = self.graph.call_function(target, args, kwargs)
        if target in OPS:
            node.meta["spec"] = OPS[target].specs(*fx.map_arg(args, lambda n: n.meta["spec"]))
        elif shape is not None:
            first = args[0] if isinstance(args[0], fx.Node) else args[0][0] if isinstance(args[0], list) else None
            dtype = first.meta["spec"].dtype if first is not None and "spec" in first.meta else torch.int64
            node.meta["spec"] = TensorSpec(tuple(shape), dtype)
        return node

    def parts(self, node: fx.Node, count: int) -> list[fx.Node]:
        taken = []
        for i in range(count):
            taken.append(self.graph.call_function(operator.getitem, (node, i)))
            taken[-1].meta["spec"] = node.meta["spec"][i]
        return taken

    def program(self, **outputs: fx.Node) -> Program:
        """Output names have _ for a dot: rows_0 is rows.0."""
        named = {k.replace("rows_", "rows."): v for k, v in outputs.items()}
        self.graph.output(tuple(named.values()))
        specs = {k: v.meta["spec"] for k, v in named.items()}
        return Program(self.phase, self.config, self.graph, {}, self.inputs, specs, self.table)


class Leaves(dict[str, torch.Tensor]):
    """Checkpoint tensors by name, in double precision."""

    def tensor(self, name: str) -> torch.Tensor:
        return self[name]


def random_leaves(program: Program, seed: int = 0, **given: torch.Tensor) -> Leaves:
    """Random values for every leaf, exactly representable in fp32, rows scaled to keep sums near 1."""
    generator = torch.Generator().manual_seed(seed)
    leaves = Leaves({k: v.double() for k, v in given.items()})

    def visit(recipe: Recipe) -> None:
        if isinstance(recipe, Source):
            if recipe.name not in leaves:
                x = torch.randn(recipe.shape, generator=generator) / max(1, recipe.shape[-1]) ** 0.5
                leaves[recipe.name] = x.double()
        else:
            for value in vars(recipe).values():
                for child in value if isinstance(value, tuple) else [value]:
                    if isinstance(child, Recipe):
                        visit(child)

    for recipe in program.weights.recipes.values():
        visit(recipe)
    return leaves


def save_engine(lowered: Lowered, leaves: Leaves, folder: Path) -> Path:
    """The weights as one safetensors file and the placed model beside it."""
    tensors = {name: recipe.evaluate(leaves, torch.float32).contiguous() for name, recipe in lowered.weights.items()}
    file = folder / "w.safetensors"
    placement: dict[str, Placement] = {}
    if tensors:
        save_file(tensors, file)
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            low, high = entry["data_offsets"]
            placement[name] = Placement(file.name, start + low, high - low, "float32", tuple(entry["shape"]))
    onnx.save(place(lowered.model, placement), folder / "m.onnx")
    return folder / "m.onnx"


def open_session(path: Path, options: Mapping[str, str], threads: int = 1) -> ort.InferenceSession:
    so = ort.SessionOptions()
    so.intra_op_num_threads = threads
    so.log_severity_level = 3
    for key, value in options.items():
        so.add_session_config_entry(key, value)
    return ort.InferenceSession(path, so, ["CPUExecutionProvider"])


def run_onnx(
    program: Program, leaves: Leaves, folder: Path, feeds: Mapping[str, np.ndarray], mode: str
) -> dict[str, np.ndarray]:
    """``mode``: ``ort``; ``portable`` (ORT, ai.onnx only, fully checked); ``reference`` (onnx's own evaluator)."""
    lowered = lower(program, portable=mode != "ort")
    path = save_engine(lowered, leaves, folder)
    if mode != "ort":
        onnx.checker.check_model(str(path), full_check=True)
        assert {o.domain for o in lowered.model.opset_import} == {""}
    names = [o.name for o in lowered.model.graph.output]
    kept = {i.name for i in lowered.model.graph.input}
    used = {k: v for k, v in feeds.items() if k in kept}
    if mode == "reference":
        return dict(zip(names, ReferenceEvaluator(onnx.load(path)).run(None, used), strict=True))
    session = open_session(path, lowered.session_options)
    return dict(zip(names, session.run(None, used), strict=True))


def expected(program: Program, leaves: Leaves, feeds: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The meaning of the program in fp64."""
    wide = {k: torch.from_numpy(v) for k, v in feeds.items()}
    wide = {k: v.double() if v.is_floating_point() else v for k, v in wide.items()}
    weights = {k: r.evaluate(leaves, torch.float64) for k, r in program.weights.recipes.items()}
    return evaluate(program, wide, weights)


def relative(got: np.ndarray, want: torch.Tensor) -> float:
    """Largest error over the largest value; 0 for equal empty tensors, inf for another shape."""
    if tuple(got.shape) != tuple(want.shape):
        return float("inf")
    if not want.numel():
        return 0.0
    return float((torch.from_numpy(got).double() - want.double()).abs().max() / want.double().abs().max())
