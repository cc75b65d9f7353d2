"""A checkpoint, local or of the Hugging Face hub, checked whole before it is handed out.

Everything in it is hostile data: no code of it is imported, nothing is unpickled, no file outside its folder is
opened, sizes are checked against the files before anything is allocated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv2_compile.checkpoint import aux_files, config_json, hub
from dsv2_compile.checkpoint.config_json import ParsedConfig
from dsv2_compile.checkpoint.match import match_layout, stored_dtype
from dsv2_compile.checkpoint.shards import Stored, read_weights, shard_names
from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import ModelError, UsageError
from dsv2_compile.progress import Progress, silent

if TYPE_CHECKING:
    import torch

MAX_FILES = 100_000
_SHOWN = 100
_THREADS = 2


@dataclass(frozen=True)
class Checkpoint:
    """A source of tensors by published name.

    ``name``: hub id, or name of the directory. ``revision``: commit of a hub model, else None. ``dtype``: that of
    most bytes, as torch calls it. ``aux_files``: settings and tokenizer, to be copied unchanged. ``notes``: what the
    user should know, one line each.
    """

    path: Path
    name: str
    config: ModelConfig
    revision: str | None
    dtype: str
    aux_files: tuple[Path, ...]
    notes: tuple[str, ...]
    _tensors: Stored = field(repr=False, compare=False)

    @classmethod
    def open(
        cls, model: str | Path, revision: str | None = None, strict: bool = False, progress: Progress = silent
    ) -> Checkpoint:
        """``model``: a directory, or a hub id OWNER/NAME of which ``revision`` is fetched (default: the main one).

        ``strict``: NaN or infinity in the weights is an error. ModelError for anything that is not as it must be;
        UsageError, IncompatibleError and ResourceError if the model cannot be got at.
        """
        path, remote = _locate(model, revision, progress)
        names = _listing(path)
        config, notes, aux = _settings(path, names)
        if remote:
            progress(f"weights of {model}", 0, 0)
            hub.fetch(str(model), path.name, shard_names(path, names))
            names = _listing(path)
            if not hub.is_commit(revision):
                notes.append(f"revision {revision or 'main'} is not pinned; it is now {path.name}")
        progress("checkpoint headers", 0, 0)
        tensors, dtype, more = _weights(path, names, config)
        out = cls(
            path=path,
            name=str(model) if remote else path.name,
            config=config.model,
            revision=path.name if remote else None,
            dtype=dtype,
            aux_files=aux,
            notes=(*notes, *more),
            _tensors=tensors,
        )
        if strict and (found := out.nonfinite(progress)):
            raise ModelError(
                f"{len(found)} tensors hold NaN or infinity.",
                "Take the weights again, or build without --strict.",
                _capped([f"{n}: {nan} NaN, {inf} infinite" for n, (nan, inf) in found.items()]),
            )
        return out

    @classmethod
    def settings(cls, model: str | Path, revision: str | None = None, progress: Progress = silent) -> Checkpoint:
        """The same without weights, which need not be there; it has no tensors."""
        path, remote = _locate(model, revision, progress)
        config, notes, aux = _settings(path, _listing(path))
        name, at = (str(model), path.name) if remote else (path.name, None)
        return cls(path, name, config.model, at, config.dtype or "bfloat16", aux, tuple(notes), {})

    def tensor(self, name: str) -> torch.Tensor:
        """The stored values and dtype, as a read-only view on the file; KeyError if the model has no such tensor.

        An expert of a stacked tensor has its published name. Writing to the view ends the process.
        """
        file, entry = self._tensors[name]
        return file.tensor(entry)

    def nonfinite(self, progress: Progress = silent) -> dict[str, tuple[int, int]]:
        """Tensor name -> (NaN, infinite values), only those that have any; every value is read."""
        total = sum(entry.nbytes for _, entry in self._tensors.values())
        out, done = {}, 0
        for name, (_, entry) in sorted(self._tensors.items(), key=lambda item: (item[1][0].name, item[1][1].start)):
            nan, inf = _count_nonfinite(self.tensor(name))
            if nan or inf:
                out[name] = (nan, inf)
            done += entry.nbytes
            progress("weights checked for NaN, bytes", done, total)
        return out

    def weights_sha256(self) -> str:
        """SHA-256 over name, dtype, shape and SHA-256 of the data of every tensor, by published name in order.

        The same weights have the same hash however they are sharded or stacked. Reads everything.
        """

        def line(name: str) -> str:
            file, entry = self._tensors[name]
            return f"{name} {entry.dtype} {list(entry.shape)} {hashlib.sha256(file.data(entry)).hexdigest()}\n"

        whole = hashlib.sha256()
        with ThreadPoolExecutor(_THREADS) as pool:
            for text in pool.map(line, sorted(self._tensors)):
                whole.update(text.encode())
        return whole.hexdigest()


def _locate(model: str | Path, revision: str | None, progress: Progress) -> tuple[Path, bool]:
    """(folder, whether it is of the hub). Of a hub model only the settings are there yet."""
    if os.path.isdir(model):
        if revision is not None:
            raise UsageError(f"{model} is a directory: --revision has no effect.", "Leave --revision out.")
        return Path(os.path.abspath(model)), False
    if os.path.exists(model):
        raise UsageError(f"{model} is a file.", "Give the directory that holds config.json and the weights.")
    if not isinstance(model, str) or not hub.is_hub_id(model):
        raise UsageError(f"{model} is no directory, and not a hub id.", "Give a directory, or OWNER/NAME of the hub.")
    progress(f"settings of {model}", 0, 0)
    return hub.fetch_settings(model, revision), True


def _listing(path: Path) -> frozenset[str]:
    try:
        with os.scandir(path) as entries:
            names = frozenset(e.name for _, e in zip(range(MAX_FILES + 1), entries, strict=False))
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {e.strerror}.", "Check its permissions.") from None
    if len(names) > MAX_FILES:
        raise ModelError(f"{path} holds more than {MAX_FILES} files.", "Give the folder of one checkpoint.")
    return names


def _settings(path: Path, names: Collection[str]) -> tuple[ParsedConfig, list[str], tuple[Path, ...]]:
    """What is read before any weights: the configuration, notes on it, and the files to copy."""
    if aux_files.CONFIG not in names:
        raise ModelError(f"{path} has no config.json.", "Give the folder of a Hugging Face checkpoint.")
    parsed = config_json.parse(aux_files.read(path, aux_files.CONFIG))
    aux = aux_files.check(path, names, parsed.model)
    if aux_files.GENERATION in aux.json:
        eos = config_json.generation_eos(aux.json[aux_files.GENERATION], parsed.model)
        parsed = replace(parsed, model=replace(parsed.model, eos_token_ids=eos or parsed.model.eos_token_ids))
    scripts = sorted(n for n in names if n.endswith(".py"))
    notes = list(parsed.notes)
    if scripts or parsed.remote_code:
        which = ", ".join(ascii(n)[1:-1] for n in scripts[:10]) or "what auto_map in config.json names"
        notes.append(f"code of the checkpoint is not executed: {which}")
    return parsed, notes, tuple(path / n for n in aux.names)


def _weights(path: Path, names: Collection[str], config: ParsedConfig) -> tuple[Stored, str, list[str]]:
    """The tensors by published name, their dtype, and notes; ModelError listing all that does not fit."""
    weights = read_weights(path, names)
    problems = weights.problems
    tensors = {} if problems and not weights.stored else match_layout(config.model, weights)
    if problems:
        if any("incomplete" in p for p in problems):
            remedy = "Fetch the files that are incomplete again; what else is listed may follow from them."
        else:
            remedy = "The files must be those of one model, with its config.json; take them again."
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ModelError(f"The weights in {path} cannot be used: {count}.", remedy, _capped(problems))
    dtype = stored_dtype(tensors)
    if config.dtype not in (None, dtype):
        weights.notes.append(f"config.json says {config.dtype}, the tensors are {dtype}")
    return tensors, dtype, weights.notes


def _capped(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]


_CHUNK = 1 << 20
"""Elements: small enough for the cache."""


def _count_nonfinite(tensor: torch.Tensor) -> tuple[int, int]:
    nan = inf = 0
    for chunk in tensor.reshape(-1).split(_CHUNK):
        low, high = chunk.aminmax()
        if not (low.isfinite() and high.isfinite()):
            nan += int(chunk.isnan().sum())
            inf += int(chunk.isinf().sum())
    return nan, inf
