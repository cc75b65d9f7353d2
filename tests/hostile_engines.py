"""A whole engine with something wrong about it, one thing each: in the folder beside the right bytes, or at the edge of
what its manifest may say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsv2_compile.engine.manifest import FILE_NAME
from dsv2_compile.plan.plan import FILE as PLAN
from tests import toy_engine
from tests.mutated_engines import engine, value_of, with_manifest, write

# ---- Trees: what is there beside the right bytes ---------------------------------------------------------------------


def _linked(e: Path) -> None:
    (e / PLAN).rename(e.parent / "elsewhere")
    (e / PLAN).symlink_to(e.parent / "elsewhere")


def _linked_folder(e: Path) -> None:
    (e / "weights").rename(e.parent / "w")
    (e / "weights").symlink_to(e.parent / "w")


def _fifo(e: Path) -> None:
    (e / PLAN).unlink()
    os.mkfifo(e / PLAN)


def _folder_for_file(e: Path) -> None:
    (e / PLAN).unlink()
    (e / PLAN).mkdir()


def _linked_manifest(e: Path) -> None:
    (e / FILE_NAME).rename(e.parent / "m")
    (e / FILE_NAME).symlink_to(e.parent / "m")


def _fifo_manifest(e: Path) -> None:
    (e / FILE_NAME).unlink()
    os.mkfifo(e / FILE_NAME)


def _deep_folders(e: Path) -> None:
    """Deeper than a path may be long."""
    here = os.open(e, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def _listed(path: str) -> Callable[[Path], None]:
    """``path`` is there as well, with the bytes of the plan, and the manifest lists it."""

    def act(e: Path) -> None:
        value = value_of({FILE_NAME: (e / FILE_NAME).read_bytes()})
        value["files"][path] = value["files"][PLAN]
        possible = path.isprintable() and len(path) < 256 and not (e / path).exists() and not path.endswith(("/", "/x"))
        beside = {path: (e / PLAN).read_bytes()} if possible else {}
        write(e, with_manifest(beside, value))

    return act


def _elsewhere(e: Path) -> None:
    e.rename(e.parent / "real")
    e.symlink_to(e.parent / "real")


def _gone(e: Path) -> None:
    e.rename(e.parent / "gone")


def _file(e: Path) -> None:
    _gone(e)
    e.write_bytes(b"")


TREES: dict[str, tuple[int, Callable[[Path], object]]] = {
    "untouched": (0, lambda e: None),
    "the engine is behind a link": (0, _elsewhere),
    "no engine": (2, _gone),
    "a file for an engine": (2, _file),
    "stray file": (8, lambda e: (e / "extra.so").write_bytes(b"x")),
    "stray file with an odd name": (8, lambda e: (e / "a\nb\xff").write_bytes(b"x")),
    "stray file in a folder": (8, lambda e: (e / "weights/2.bin").write_bytes(b"x")),
    "empty folder": (8, lambda e: (e / "empty").mkdir()),
    "missing file": (8, lambda e: (e / PLAN).unlink()),
    "empty file": (8, lambda e: (e / PLAN).write_bytes(b"")),
    "link to the same bytes": (8, _linked),
    "folder behind a link": (8, _linked_folder),
    "hard link": (8, lambda e: os.link(e / PLAN, e.parent / "second")),
    "FIFO": (8, _fifo),
    "folder for a file": (8, _folder_for_file),
    "manifest behind a link": (8, _linked_manifest),
    "FIFO for a manifest": (8, _fifo_manifest),
    "no manifest": (8, lambda e: (e / FILE_NAME).unlink()),
    "empty manifest": (8, lambda e: (e / FILE_NAME).write_bytes(b"")),
    "folders without end": (8, _deep_folders),
    **{
        f"lists {path!r}": (8, _listed(path))
        for path in (
            "../plan.json", "/etc/passwd", "a/../plan.json", "./plan.json", "weights//1.bin", "weights/", "PLAN.json",
            "plan.json/x", "Weights", "manifest.json", "MANIFEST.JSON", "manifest.json/x", "a\\b", "a\0b", "é",
            "a" * 256,
        )
    },
}  # fmt: skip
"""What is done to a whole engine, and the exit code that it must give."""


# ---- Manifests: the last value that is allowed, and the first that is not --------------------------------------------


def _nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


EDGES: list[tuple[int, str, Any]] = [
    (5, "schema", "dsv2/engine/2"),
    (5, "schema", "dsv2/engine/11"),
    (8, "schema", "dsv2/plan/1"),
    (8, "status", "good"),
    (0, "target", "a" * 64),
    (8, "target", "a" * 65),
    (8, "target", "a/b"),
    (0, "max_batch_size", 2**31 - 1),
    (8, "max_batch_size", 2**31),
    (8, "max_batch_size", 0),
    (8, "max_batch_size", True),
    (8, "max_batch_size", 6.0),
    (0, "max_seq_len", toy_engine.MAX_SEQ),
    (8, "max_seq_len", toy_engine.MAX_SEQ + 1),
    (0, "symbols>batch", [5, 5]),
    (8, "symbols>batch", [5, 4]),
    (8, "symbols>batch", [5]),
    (0, "model>bos_token_id", None),
    (8, "model>bos_token_id", -1),
    (0, "model>rms_norm_eps", 5e-324),
    (8, "model>rms_norm_eps", 0),
    (8, "model>rms_norm_eps", 0.0),
    (0, "model>routed_scaling_factor", -(2**63)),
    (8, "model>routed_scaling_factor", -(2**63) - 1),
    (0, "model>eos_token_ids", [0] * 256),
    (8, "model>eos_token_ids", [0] * 257),
    (0, "source>name", "é" * 256),
    (8, "source>name", "é" * 257),
    (0, "source>weights_sha256", "0" * 64),
    (8, "source>weights_sha256", "0" * 63),
    (8, "source>weights_sha256", "0" * 63 + "g"),
    (8, "source>weights_sha256", "0" * 64 + "\n"),
    (0, "toolchain>tool", "!~"),
    (8, "toolchain>tool", "a b"),
    (8, "toolchain>a b", "1"),
    (8, "programs>decode>file", "missing.json"),
    (8, "programs>decode>extra", 1),
    (8, "weights>head>file", "missing.bin"),
    (8, "weights>head>offset", 545),
    (8, "weights>head>shape", [10, 9]),
    (8, "weights>head>dtype", "float32"),
    (0, "weights>head>dtype", "float16"),
    (0, "weights>none>shape", [0, *[2**48] * 7]),
    (8, "weights>none>shape", [0] * 9),
    (8, "weights>none>shape", [2**48 + 1, 0]),
    (8, "weights>none>shape", [2**31, 2**31]),  # times 4 bytes: 0 in 64 bits
    (0, "numerics>deep", _nested(22, 0)),
    (8, "numerics>deep", _nested(23, 0)),
    (0, "numerics>deep", _nested(23, [])[0]),
    (0, "numerics>text", "é" * 65_536),
    (8, "numerics>text", "é" * 65_537),
]
"""The exit code, a place of the manifest, and what is put there in an engine that is whole otherwise."""


def edges(folder: Path) -> Iterator[Path]:
    whole = engine()
    for i, (_, place, new) in enumerate(EDGES):
        value = value_of(whole)
        *parents, last = place.split(">")
        at = value
        for name in parents:
            at = at[name]
        at[last] = new
        yield write(folder / str(i), with_manifest(whole, value))
