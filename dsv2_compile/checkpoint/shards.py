"""The weight files of a checkpoint folder: model.safetensors, or the shards that model.safetensors.index.json names."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv2_compile.checkpoint.fields import short
from dsv2_compile.checkpoint.files import FileError, read_file
from dsv2_compile.checkpoint.safetensors_file import Entry, HeaderError, SafetensorsFile
from dsv2_compile.engine import strictjson
from dsv2_compile.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 32 << 20
MAX_SHARDS = 4096
_NUMBERED = re.compile(r".*-\d+(-of-\d+)\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Located = tuple[SafetensorsFile, Entry]
Stored = dict[str, Located]
"""Tensor name in the files -> where it is."""


@dataclass
class Weights:
    """What the files hold. ``unreadable``: tensors that the index places in files that were refused."""

    stored: Stored = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_weights(root: Path, names: Collection[str]) -> Weights:
    """``names``: the files of ``root``. ModelError if there are no weights to read; the rest goes to ``problems``."""
    if SINGLE in names and INDEX in names:
        raise ModelError(
            f"The checkpoint has {SINGLE} and {INDEX}: two sets of weights.", "Remove the one that is not meant."
        )
    if SINGLE in names:
        weights = _single(root)
        read = {SINGLE}
    elif INDEX in names:
        files = _index(root)
        weights = _sharded(root, files)
        read = set(files.values())
    else:
        raise _no_weights(names)
    if unread := sorted(n for n in names if n.endswith((".safetensors", *_PICKLED)) and n not in read):
        weights.notes.append(f"not read: {', '.join(map(short, unread[:10]))}")
    return weights


def shard_names(root: Path, names: Collection[str]) -> list[str]:
    """The weight files that ``root`` should have, by its index if it has one."""
    return sorted(set(_index(root).values())) if INDEX in names else [SINGLE]


def _single(root: Path) -> Weights:
    weights = Weights()
    file = _open(root, SINGLE, "", weights.problems)
    if file is not None:
        weights.stored = {name: (file, entry) for name, entry in file.entries.items()}
    return weights


def _index(root: Path) -> dict[str, str]:
    """The weight map, tensor name -> file name, the names not yet checked."""
    remedy = f"Take {INDEX} from the published model again."
    try:
        data: Any = strictjson.loads(read_file(root, INDEX, MAX_INDEX_BYTES), MAX_INDEX_BYTES)
    except (FileError, strictjson.JsonError) as e:
        raise ModelError(f"{INDEX} cannot be read: {e}.", remedy) from None
    files = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(f, str) for f in files.values()):
        raise ModelError(f"{INDEX} has no weight_map from tensor names to file names.", remedy)
    if len(set(files.values())) > MAX_SHARDS:
        raise ModelError(f"{INDEX} names {len(set(files.values()))} files, the limit is {MAX_SHARDS}.", remedy)
    return files


def _sharded(root: Path, files: dict[str, str]) -> Weights:
    weights = Weights()
    shards = sorted(set(files.values()))
    sets = sorted({m.group(1) for shard in shards if (m := _NUMBERED.fullmatch(shard))})
    if len(sets) > 1:
        weights.problems.append(f"{INDEX}: shards of more than one set: {', '.join(map(short, sets[:10]))}")
    for i, shard in enumerate(shards, 1):
        file = _open(root, shard, f" (shard {i} of {len(shards)})", weights.problems)
        if file is None:
            weights.unreadable |= {name for name, of in files.items() if of == shard}
            continue
        for name, entry in file.entries.items():
            mapped = files.get(name)
            if mapped != shard:
                where = (
                    "which the index does not name" if mapped is None else f"which the index places in {short(mapped)}"
                )
                weights.problems.append(f"{shard}: it holds {short(name)}, {where}")
            else:
                weights.stored[name] = (file, entry)
    known = weights.stored.keys() | weights.unreadable
    for name, shard in files.items():
        if name not in known:
            weights.problems.append(f"{INDEX}: it places {short(name)} in {short(shard)}, which does not hold it")
            weights.unreadable.add(name)
    return weights


def _open(root: Path, name: str, what: str, problems: list[str]) -> SafetensorsFile | None:
    try:
        return SafetensorsFile(root, name)
    except FileError as e:
        problems.append(f"{short(name)[1:-1]}{what}: {e}")
    except HeaderError as e:
        problems += [f"{name}{what}: {problem}" for problem in e.problems]
    return None


def _no_weights(names: Collection[str]) -> ModelError:
    pickled = sorted(n for n in names if n.endswith(_PICKLED))
    if pickled:
        return ModelError(
            f"The checkpoint has only pickled weights ({', '.join(map(short, pickled[:3]))}): loading them runs code.",
            "Take a revision with safetensors, or convert it where you trust it: transformers' save_pretrained.",
        )
    if loose := sorted(n for n in names if n.endswith(".safetensors")):
        return ModelError(
            f"The checkpoint has safetensors files ({', '.join(map(short, loose[:3]))}) but no {INDEX}.",
            f"Take {INDEX} from the published model; a single file must be called {SINGLE}.",
        )
    return ModelError(
        f"The checkpoint has no weights: neither {SINGLE} nor {INDEX}.",
        "Take a model or revision that has safetensors.",
    )
