"""``synth``: a random checkpoint of any size in the published layout, the same bytes for the same seed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv2_compile.checkpoint.noise import DTYPES, blocks
from dsv2_compile.checkpoint.presets import configure, published_config
from dsv2_compile.checkpoint.tokenizer import tokenizer_files
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.disk import disk
from dsv2_compile.engine.stage import require_room, staged
from dsv2_compile.errors import UsageError
from dsv2_compile.model.layout import checkpoint_tensors
from dsv2_compile.progress import Progress, silent

INDEX = "model.safetensors.index.json"
_SAFETENSORS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class SynthRequest:
    """What to write. ``overrides``: settings of the preset to change, see `presets.configure`.

    ``force`` replaces a checkpoint already at ``output``, and nothing that is not one.
    """

    output: Path
    preset: str = "tiny"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    seed: int = 0
    max_shard_bytes: int = 4 << 30
    force: bool = False


@dataclass(frozen=True)
class SynthReport:
    """What was written: ``bytes`` of tensor data, ``files`` relative to ``path``."""

    path: Path
    config: ModelConfig
    dtype: str
    bytes: int
    tensors: int
    parameters: int
    shards: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Shard:
    file: str
    tensors: dict[str, tuple[int, ...]]
    header: bytes


def synth(request: SynthRequest, progress: Progress = silent) -> SynthReport:
    """Write the checkpoint, complete under its name or not at all; a few blocks of it are in memory at a time.

    ``progress`` gets bytes. UsageError: a preset, setting, dtype or output that cannot be. ResourceError: no room.
    """
    if request.dtype not in DTYPES:
        raise UsageError(f"There is no dtype {request.dtype!r} for checkpoints.", f"Choose one of {', '.join(DTYPES)}.")
    if request.max_shard_bytes < 1:
        raise UsageError(f"max_shard_bytes is {request.max_shard_bytes}.", "Use a positive number of bytes.")
    if request.seed < 0:
        raise UsageError(f"The seed is {request.seed}.", "Use 0 or a positive number.")
    config = configure(request.preset, request.overrides)
    item = DTYPES[request.dtype].itemsize
    shapes = checkpoint_tensors(config)
    parameters = sum(map(_numel, shapes.values()))
    total = parameters * item
    shards = _plan(shapes, request.dtype, request.max_shard_bytes)
    small = tokenizer_files(config) | _json_files(config, request.dtype, shards, total)
    out = Path(os.path.abspath(request.output))
    _refuse(out, request.force)
    done = 0
    with staged(out, request.force, "synth") as stage:
        need = total + sum(len(s.header) for s in shards) + sum(map(len, small.values()))
        require_room(stage, need, "Free disk space, or choose a smaller model or an output directory on another disk.")
        progress("tensors, bytes", 0, total)
        for shard in shards:
            for data in _write(stage / shard.file, _contents(shard, config, request)):
                done += data
                progress("tensors, bytes", done, total)
        for name, contents in small.items():
            for _ in _write(stage / name, iter([(contents, 0)])):
                pass
    files = tuple(sorted([*small, *(s.file for s in shards)]))
    return SynthReport(out, config, request.dtype, total, len(shapes), parameters, len(shards), files)


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


def _plan(shapes: dict[str, tuple[int, ...]], dtype: str, most: int) -> list[_Shard]:
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = most
    for name, shape in shapes.items():
        size = _numel(shape) * DTYPES[dtype].itemsize
        if size > room and groups[-1]:
            groups.append({})
            room = most
        groups[-1][name] = shape
        room -= size
    count = len(groups)
    names = (f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1))
    return [_Shard(name, group, _header(group, dtype)) for name, group in zip(names, groups, strict=True)]


def _header(tensors: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + _numel(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": _SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _json_files(config: ModelConfig, dtype: str, shards: list[_Shard], total: int) -> dict[str, bytes]:
    published = published_config(config, dtype)
    generation = {k: published[k] for k in ("bos_token_id", "eos_token_id") if published[k] is not None}
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: shard.file for shard in shards for name in shard.tensors},
    }
    contents = {"config.json": published, "generation_config.json": generation, INDEX: index}
    return {name: (json.dumps(data, indent=2) + "\n").encode() for name, data in contents.items()}


def _contents(shard: _Shard, config: ModelConfig, request: SynthRequest) -> Iterator[tuple[bytes | memoryview, int]]:
    """Header and tensor data in order, each with the tensor bytes it adds."""
    yield shard.header, 0
    for data in blocks(shard.tensors, config, request.dtype, request.seed):
        yield data, len(data)


def _write(path: Path, contents: Iterator[tuple[bytes | memoryview, int]]) -> Iterator[int]:
    with disk(path), open(path, "xb", buffering=0) as f:
        for data, progress in contents:
            view = memoryview(data)
            while len(view):
                view = view[f.write(view) :]
            yield progress
        os.fsync(f.fileno())


def _refuse(out: Path, force: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"The output {out} exists and is not a directory.", "Give another output directory.")
    with disk(out):
        found = list(out.iterdir()) if out.is_dir() else []
    if not found:
        return
    if not force:
        raise UsageError(f"The output {out} exists.", "Give another output directory, or --force to replace it.")
    if not (out / "config.json").is_file() or any(p.is_symlink() or not p.is_file() for p in found):
        raise UsageError(
            f"The output {out} exists and is not a checkpoint; it is not replaced.", "Give another output directory."
        )
