"""Writes a model repository for Triton Inference Server from an engine for CPUs.

    DIR/NAME/config.pbtxt, 1/model.py, 1/engine/      streams text, in the Python backend
    DIR/NAME-prefill/config.pbtxt, 1 -> ../NAME/1/engine    the ONNX programs as they are, in the ONNX Runtime
    DIR/NAME-decode/config.pbtxt, 1 -> ../NAME/1/engine     backend: cache in, new rows out
    DIR/README.md

The links let the three share one copy of the weights, which ONNX Runtime reads from below the model's own directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dsv2_compile.engine import integrity
from dsv2_compile.engine.disk import HashedFile, disk
from dsv2_compile.engine.manifest import FILE_NAME, Manifest
from dsv2_compile.engine.stage import require_room, staged
from dsv2_compile.errors import IncompatibleError, ModelError, UsageError
from dsv2_compile.package import pbtxt
from dsv2_compile.progress import Progress, silent
from dsv2_compile.runtime import Engine

PHASES = ("prefill", "decode")
_BLOCK = 8 << 20
_MODEL = Path(__file__).with_name("triton_model.py")


@dataclass(frozen=True)
class Request:
    """``link``: the repository refers to the engine where it is, instead of holding a copy. ``force`` replaces a
    repository that this wrote, and nothing else."""

    engine: Path
    output: Path
    name: str
    link: bool = False
    force: bool = False


@dataclass(frozen=True)
class Packaged:
    """``bytes`` of the engine in it, 0 for a link."""

    repository: Path
    models: tuple[str, ...]
    bytes: int
    engine_status: str


def package(request: Request, progress: Progress = silent) -> Packaged:
    """The repository, complete under its name or not there. It is loaded once on the way, by this runtime.

    UsageError: a name or output that cannot be. IncompatibleError: an engine for GPUs, or that does not load here.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", request.name):
        raise UsageError(f"{request.name!r} is no name for a model.", "Use letters, digits, '.', '_' and '-': --name.")
    engine, out = Path(os.path.realpath(request.engine)), Path(os.path.abspath(request.output))
    manifest = integrity.read_manifest(engine)
    if manifest.backend != "onnxruntime":
        raise IncompatibleError(
            f"{request.engine} is an engine for GPUs ({manifest.target}).", "Package one that was built with --cpu."
        )
    _refuse(out, request.force, engine)
    raw = {phase: f"{request.name}-{phase}" for phase in PHASES}
    total = 0 if request.link else sum(f.bytes for f in manifest.files.values())
    with staged(out, request.force, "package") as stage:
        require_room(stage, total, "Free disk space, choose another disk, or refer to the engine with --link.")
        version = stage / request.name / "1"
        _write(version.parent / "config.pbtxt", pbtxt.streaming(request.name))
        _write(version / "model.py", _MODEL.read_text())
        if request.link:
            (version / "engine").symlink_to(engine)
        else:
            _copy(engine, version / "engine", [*manifest.files, FILE_NAME], total, progress)
        for phase, name in raw.items():
            _write(stage / name / "config.pbtxt", pbtxt.program(name, manifest.programs[phase]))
            (stage / name / "1").symlink_to(f"../{request.name}/1/engine")
        _write(stage / "README.md", _readme(request.name, manifest))
        progress("loading", 0, 0)
        Engine.load(version / "engine").close()
    return Packaged(out, (request.name, *raw.values()), total, manifest.status)


def _copy(engine: Path, out: Path, files: Iterable[str], total: int, progress: Progress) -> None:
    """Hashes are checked when the copy is loaded."""
    done = 0
    for name in files:
        try:
            with open(engine / name, "rb") as source, HashedFile(out / name) as f:
                while block := source.read(_BLOCK):
                    f.write(block)
                    done += len(block)
                    progress("engine, bytes", min(done, total), total)
        except OSError as e:  # of the source: what concerns the copy is a Dsv2Error already
            raise ModelError(f"Cannot read {engine / name}: {e.strerror}.", "Check the engine with verify.") from e


def _write(path: Path, text: str) -> None:
    with HashedFile(path) as f:
        f.write(text.encode())


def _refuse(out: Path, force: bool, engine: Path) -> None:
    real = Path(os.path.realpath(out))
    if engine.is_relative_to(real) or real.is_relative_to(engine):
        raise UsageError(f"The output {out} contains the engine, or is in it.", "Give another directory.")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"The output {out} exists and is not a directory.", "Give another directory.")
    with disk(out):
        names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if not names:
        return
    if not force:
        raise UsageError(f"The output {out} exists.", "Give another directory, or --force to replace it.")
    if not any(_is_ours(out, name, names) for name in names):
        raise UsageError(
            f"The output {out} exists and holds more than a repository of this command; it is not replaced.",
            "Give another directory.",
        )


def _is_ours(out: Path, name: str, names: set[str]) -> bool:
    engine = out / name / "1" / "engine"
    parts = {name, "README.md", *(f"{name}-{phase}" for phase in PHASES)}
    return names == parts and (engine.is_symlink() or (engine / FILE_NAME).is_file())


def _readme(name: str, manifest: Manifest) -> str:
    needed = manifest.toolchain.get("onnxruntime", "")
    return f"""# {name} for Triton Inference Server

    tritonserver --model-repository DIR

The models are `{name}`, which streams text, and its ONNX programs `{name}-prefill` and `{name}-decode` for clients
that keep the cache themselves.

`{name}` runs in the Python backend. Its Python needs dsv2-compile, numpy, tokenizers and onnxruntime {needed} or later
(`pip install --no-deps dsv2-compile`, then the others; no torch). It takes `text_input` or `input_ids`, and `stream`,
`max_tokens`, `temperature`, `top_k`, `top_p`, `seed` and `stop_token_ids`. With `stream` it answers once a token, over
gRPC streams or /generate_stream; without, once. Requests share one running batch: one instance is enough.

The programs need an ONNX Runtime backend of version {needed} or later.

This repository was checked without Triton: its configurations, and the engine by the runtime that model.py uses.
"""
