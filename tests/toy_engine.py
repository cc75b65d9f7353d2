"""A tiny hand-made engine that keeps the run-time contract, and its oracle in numpy.

Layer l caches row_l[j] = (l + 1) * emb[token_j] + pos[j] for position j. The logits of the last
position n-1 are sum over l and j < n of k[j] * row_l[j] @ w_l: every cached value, its slot, its
layer and its position matter. Masked rows are multiplied by zero, as attention does, so a NaN left
in the cache shows. Token `NAN` has a NaN embedding; positions past the table fail in Gather.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.manifest import Manifest, ProgramEntry, SourceEntry, TensorEntry
from dsv2_compile.engine.placement import Placement
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.weights import Concat, Recipe, Slice, Source, Stack

VOCAB, LAYERS, WIDTH, NAN, EOS = 260, 3, 12, 13, 256
MAX_SEQ, MAX_BATCH, SHARD_BYTES = 2048, 6, 60_000
ORIGIN = SourceEntry("toy", None, None)

CONFIG = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=LAYERS,
    num_attention_heads=3,
    q_lora_rank=None,
    kv_lora_rank=8,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=4,
    intermediate_size=8,
    first_k_dense_replace=1,
    moe_intermediate_size=8,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    max_position_embeddings=MAX_SEQ,
    bos_token_id=257,
    eos_token_ids=(EOS,),
)


class ToySource:
    """The checkpoint: a dict of tensors, some joined by the recipes below."""

    def __init__(self, seed: int = 0) -> None:
        g = np.random.default_rng(seed)
        emb = g.standard_normal((VOCAB, WIDTH), np.float32)
        emb[NAN] = np.nan
        arrays = {
            "emb": emb,
            "pos": g.standard_normal((MAX_SEQ, WIDTH), np.float32),
            "k": np.cos(0.1 * np.arange(MAX_SEQ, dtype=np.float32)) + 1.5,
            **{f"w.{i}": g.standard_normal((WIDTH, VOCAB), np.float32) for i in range(LAYERS)},
        }
        self.tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def recipes() -> dict[str, Recipe]:
    """Weights by name. ``emb.again`` equals ``emb`` and is stored once."""
    emb, pos = Source("emb", (VOCAB, WIDTH)), Source("pos", (MAX_SEQ, WIDTH))
    halves = (Slice(pos, 0, 0, MAX_SEQ // 2), Slice(pos, 0, MAX_SEQ // 2, MAX_SEQ))
    w = Stack(tuple(Source(f"w.{i}", (WIDTH, VOCAB)) for i in range(LAYERS)))
    return {"emb": emb, "pos": Concat(halves), "k": Source("k", (MAX_SEQ,)), "w": w, "emb.again": emb}


def oracle(source: ToySource, tokens: list[int]) -> np.ndarray:
    """Logits [V] after ``tokens``, in float64."""
    emb, pos, k = (source.tensors[n].double().numpy() for n in ("emb", "pos", "k"))
    n = len(tokens)
    total = np.zeros(VOCAB)
    for layer in range(LAYERS):
        rows = (layer + 1) * emb[tokens] + pos[:n]
        total += (k[:n, None] * rows).sum(0) @ source.tensors[f"w.{layer}"].double().numpy()
    return total


def program(phase: str, placements: dict[str, Placement]) -> onnx.ModelProto:
    """prefill or decode over external weights, with the I/O names of an engine."""
    i64, f32 = TensorProto.INT64, TensorProto.FLOAT
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}

    def const(value: Any, dtype: type = np.int64) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.array(value, dtype)
        return name

    def op(kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def arange(tensor: str, dim: int) -> str:
        size = op("Squeeze", op("Shape", tensor, start=dim, end=dim + 1))
        return op("Range", const(0), size, const(1))

    steps = arange("tokens", 1)  # [S]
    column = op("Unsqueeze", "past", const([1]))  # [B, 1]
    at = op("Add", column, steps)  # [B, S]
    lengths = "lengths" if phase == "prefill" else const([1])
    valid = op("Less", steps, op("Unsqueeze", lengths, const([1])))  # [B, S]
    old = op("Less", arange("cache.0", 1), column)  # [B, P]
    # positions of padding may lie past the table: gathered all the same, as rotary tables are
    emb, pos = op("Gather", "emb", "tokens"), op("Gather", "pos", at)

    def weight(mask: str, positions: str) -> str:
        k = op("Gather", "k", positions)
        return op("Unsqueeze", op("Mul", op("Cast", mask, to=f32), k), const([2]))

    new_weight, old_weight = weight(valid, at), weight(old, arange("cache.0", 1))
    rows, logits = [], []
    for layer in range(LAYERS):
        row = op("Add", op("Mul", emb, const(layer + 1, np.float32)), pos)
        rows.append(op("Unsqueeze", row, const([0])))
        seen = op("Concat", op("Mul", f"cache.{layer}", old_weight), op("Mul", row, new_weight), axis=1)
        summed = op("ReduceSum", seen, const([1]), keepdims=0)
        logits.append(op("MatMul", summed, op("Gather", "w", const(layer), axis=0)))
    op("Concat", *rows, out="rows", axis=0)
    op("Sum", *logits, out="logits")

    inputs = [
        helper.make_tensor_value_info("tokens", i64, ["batch", "tokens"]),
        helper.make_tensor_value_info("past", i64, ["batch"]),
        *([helper.make_tensor_value_info("lengths", i64, ["batch"])] if phase == "prefill" else []),
        *(helper.make_tensor_value_info(f"cache.{i}", f32, ["batch", "context", WIDTH]) for i in range(LAYERS)),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", f32, ["batch", VOCAB]),
        helper.make_tensor_value_info("rows", f32, [LAYERS, "batch", "tokens", WIDTH]),
    ]
    weights = [_external(name, placements[name]) for name in ("emb", "pos", "k", "w")]
    initializers = weights + [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, phase, inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _external(name: str, placement: Placement) -> onnx.TensorProto:
    tensor = TensorProto(name=name, dims=placement.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        value = {"location": placement.file, "offset": placement.offset, "length": placement.nbytes}[key]
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def tokenizer_json() -> str:
    """Byte-level, one token per byte, 256 is the end-of-sequence token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    return tokenizer.to_str()


def manifest(**changes: Any) -> Manifest:
    """A complete manifest but for files and weights, which the writer fills in."""
    ints, cache = TensorEntry("int64", ("batch",)), TensorEntry("float32", ("batch", "context", WIDTH))
    inputs = {"tokens": TensorEntry("int64", ("batch", "tokens")), "past": ints}
    inputs |= {f"cache.{i}": cache for i in range(LAYERS)}
    outputs = {
        "logits": TensorEntry("float32", ("batch", VOCAB)),
        "rows": TensorEntry("float32", (LAYERS, "batch", "tokens", WIDTH)),
    }
    base = Manifest(
        status="verified",
        backend="onnxruntime",
        target="cpu",
        model=CONFIG,
        dtype="float32",
        symbols={"batch": (1, MAX_BATCH), "tokens": (1, 512), "context": (0, MAX_SEQ)},
        programs={
            "prefill": ProgramEntry("prefill.onnx", inputs | {"lengths": ints}, outputs, "expanded", {}),
            "decode": ProgramEntry("decode.onnx", inputs, outputs, "absorbed", {}),
        },
        passes=({"name": "toy", "matches": 1, "claim": "bitwise"},),
        toolchain={"onnxruntime": onnxruntime.__version__, "dsv2-compile": "0.1.0"},
        tuning=(),
        numerics={"logits": {"cosine_p5": 1.0, "note": "toy"}},
        weights={},
        files={},
        max_batch_size=MAX_BATCH,
        max_seq_len=MAX_SEQ,
        source=ORIGIN,
    )
    return dataclasses.replace(base, **changes)


def build(
    out: Path,
    force: bool = False,
    seed: int = 0,
    source: Any = None,
    source_entry: SourceEntry = ORIGIN,
    tokenizer: bool = True,
    **changes: Any,
) -> Manifest:
    """Write the toy engine, as a pipeline would: weights, programs, small files, manifest."""
    with EngineWriter(out, force, fingerprint=f"toy-{seed}") as w:
        placements = w.write_weights(recipes(), source or ToySource(seed), torch.float32, SHARD_BYTES)
        for phase in ("prefill", "decode"):
            w.add_bytes(f"{phase}.onnx", program(phase, placements).SerializeToString(deterministic=True))
        if tokenizer:
            w.add_bytes("tokenizer.json", tokenizer_json().encode())
        w.add_bytes("config.json", b'{"model_type": "deepseek_v2"}\n')
        return w.finish(manifest(source=source_entry, **changes))
