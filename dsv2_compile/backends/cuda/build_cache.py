"""Cubins that were compiled before, by everything that decides their bytes.

An entry is one file that holds its own key and hash, so that a torn, changed or misplaced one is not taken, and it
gets its name only when it is whole, so that processes may share a folder. The hash guards against accidents, not
against people: whoever may write the folder decides what runs. To empty the cache, delete the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv2_compile.backends.cuda.disassembly import Usage
from dsv2_compile.backends.cuda.toolchain import Toolchain
from dsv2_compile.cache_folder import cache_folder
from dsv2_compile.kernels.gpu.aot import Cubin, Job

FOLDER = "kernels"
FORMAT = 3
"""To be raised when entries or what is read from a cubin change."""


@dataclass(frozen=True)
class Built:
    """``seconds``: processor time of compiling and examining."""

    cubin: Cubin
    usage: Usage
    seconds: float


def key(job: Job, toolchain: Toolchain) -> str:
    """Hex digest over the job, and with it the source, and the compilers."""
    parts = {"format": FORMAT, **asdict(toolchain), **asdict(job)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class BuildCache:
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder(FOLDER)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def get(self, key: str) -> Built | None:
        """None if there is no entry, or none that is whole."""
        try:
            return _decode(key, self.path(key).read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, built: Built) -> bool:
        """False if the folder cannot be written: a build is slower then, nothing else."""
        path, temporary = self.path(key), ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as f:
                temporary = f.name
                f.write(_encode(key, built))
            os.replace(temporary, path)
        except OSError:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            return False
        return True


def _encode(key: str, built: Built) -> bytes:
    """Hash of all that follows, a line of JSON, the cubin, the PTX."""
    cubin = asdict(built.cubin)
    image, ptx = cubin.pop("image"), cubin.pop("ptx").encode()
    head = {"key": key, "cubin": cubin, "usage": asdict(built.usage), "seconds": built.seconds, "image": len(image)}
    body = b"".join([json.dumps(head).encode(), b"\n", image, ptx])
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decode(key: str, data: bytes) -> Built:
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("not what was written")
    line, _, payload = body.partition(b"\n")
    head: dict[str, Any] = json.loads(line)
    if head["key"] != key:
        raise ValueError("another entry")
    image, ptx = payload[: head["image"]], payload[head["image"] :]
    usage: dict[str, Any] = {n: tuple(map(tuple, v)) if isinstance(v, list) else v for n, v in head["usage"].items()}
    return Built(Cubin(image=image, ptx=ptx.decode(), **head["cubin"]), Usage(**usage), head["seconds"])
