"""Builds that would write what is already there: known by what they read, and not done again.

A build's inputs are the checkpoint's files, the request, this program's own sources and the versions of its tools.
What a build made of them is noted in the user's cache folder, never in the engine: the same engine may come from
another copy of a checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import dsv2_compile
from dsv2_compile.cache_folder import cache_folder
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.engine import integrity
from dsv2_compile.engine.manifest import FILE_NAME, Manifest
from dsv2_compile.errors import Dsv2Error
from dsv2_compile.request import BuildRequest

FOLDER = "builds"
TOOLS = ("torch", "onnx", "onnxruntime", "triton", "numpy", "safetensors", "ml-dtypes")


def state(checkpoint: Checkpoint) -> bytes:
    """The configuration, and the files as they lie there, by size and time of change."""
    lines = [json.dumps(checkpoint.config.to_json(), sort_keys=True)]
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_file():
            stat = path.stat()
            lines.append(f"{path.name} {stat.st_size} {stat.st_mtime_ns}")
    return "\n".join(lines).encode()


def fingerprint(checkpoint: Checkpoint, request: BuildRequest, files: Iterable[Path]) -> str:
    """SHA-256 over all that a build reads. ``files``: what its backend reads besides."""
    h = hashlib.sha256(state(checkpoint))
    asked = replace(request, model="", output=Path(), force=False, dump_ir=None)
    h.update(repr((asked, [_version(t) for t in TOOLS])).encode())
    for path in files:
        h.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"none")
    root = Path(dsv2_compile.__file__).parent
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for path in (Path(folder) / n for n in sorted(names) if n.endswith((".py", ".json"))):
            h.update(path.relative_to(root).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return h.hexdigest()


def find(digest: str, output: Path) -> Manifest | None:
    """The manifest of the engine at ``output`` if a build of the same inputs made it and every file is as it was."""
    try:
        noted = (cache_folder(FOLDER) / digest).read_text()
        if noted != hashlib.sha256((output / FILE_NAME).read_bytes()).hexdigest():
            return None
        manifest = integrity.read_manifest(output)
        integrity.verify(output, manifest)
        return manifest
    except (OSError, Dsv2Error):
        return None


def note(digest: str, output: Path) -> None:
    """Remember that these inputs gave the engine at ``output``. A cache that cannot be written costs nothing else."""
    try:
        folder = cache_folder(FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{digest}"
        temporary.write_text(hashlib.sha256((output / FILE_NAME).read_bytes()).hexdigest())
        temporary.replace(folder / digest)
    except OSError:
        pass


def _version(tool: str) -> str:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return ""
