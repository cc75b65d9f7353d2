"""Weight recipes to safetensors files, in shards, streamed piece by piece."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dsv2_compile.engine.disk import HashedFile
from dsv2_compile.engine.placement import ITEM_BYTES, Placement
from dsv2_compile.weights import Recipe, TensorSource

ALIGNMENT = 64
"""Of the first tensor byte in a shard: safetensors asks for 8, vector loads like a cache line."""

_SAFETENSORS = {
    "float64": "F64",
    "int64": "I64",
    "float32": "F32",
    "int32": "I32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int8": "I8",
    "uint8": "U8",
}


@dataclass(frozen=True)
class Shard:
    """One file: its safetensors header, and the recipes in the order of their data."""

    file: str
    header: bytes
    recipes: tuple[tuple[str, Recipe, Placement], ...]

    @property
    def nbytes(self) -> int:
        last = self.recipes[-1][2]
        return last.offset + last.nbytes

    def plan(self) -> str:
        """A hash over everything that decides the bytes, given the source tensors."""
        text = repr([(name, recipe) for name, recipe, _ in self.recipes])
        return hashlib.sha256(self.header + text.encode()).hexdigest()


def plan_shards(recipes: Mapping[str, Recipe], dtype: torch.dtype, max_shard_bytes: int) -> list[Shard]:
    """Consecutive weights fill a shard up to ``max_shard_bytes`` of data; a larger one gets its own.

    Those of wider dtypes come first, so that every one starts at a multiple of its items."""
    groups: list[list[tuple[str, Recipe]]] = [[]]
    room = max_shard_bytes
    for name, recipe in sorted(recipes.items(), key=lambda item: -item[1].stored_dtype(dtype).itemsize):
        nbytes = math.prod(recipe.shape) * recipe.stored_dtype(dtype).itemsize
        if nbytes > room and groups[-1]:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append((name, recipe))
        room -= nbytes
    return [_layout(f"weights/weights-{i:05}.safetensors", group, dtype) for i, group in enumerate(groups, 1) if group]


def _layout(file: str, group: list[tuple[str, Recipe]], dtype: torch.dtype) -> Shard:
    entries, spans, at = {}, [], 0
    for name, recipe in group:
        kind = str(recipe.stored_dtype(dtype)).removeprefix("torch.")
        nbytes = math.prod(recipe.shape) * ITEM_BYTES[kind]
        offsets = [at, at + nbytes]
        entries[name] = {"dtype": _SAFETENSORS[kind], "shape": list(recipe.shape), "data_offsets": offsets}
        spans.append((at, nbytes, kind))
        at += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    placed = tuple(
        (name, recipe, Placement(file, len(header) + start, nbytes, kind, tuple(recipe.shape)))
        for (name, recipe), (start, nbytes, kind) in zip(group, spans, strict=True)
    )
    return Shard(file, header, placed)


def write_shard(
    shard: Shard, out: HashedFile, source: TensorSource, dtype: torch.dtype, progress: Callable[[int], None]
) -> None:
    """Header and data into ``out``; one piece of one recipe is in memory at a time.

    A recipe whose pieces do not add up to its shape is a bug of the recipe: ValueError.
    """
    out.write(shard.header)
    progress(len(shard.header))
    for name, recipe, placement in shard.recipes:
        left, stored = placement.nbytes, recipe.stored_dtype(dtype)
        for piece in recipe.pieces(source, stored):
            if piece.dtype != stored:
                raise ValueError(f"weight {name}: a piece is {piece.dtype}, expected {stored}")
            data = piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
            left -= len(data)
            if left < 0:
                break
            out.write(data)
            progress(len(data))
        if left:
            raise ValueError(f"weight {name}: pieces miss shape {recipe.shape} by {left} bytes")
