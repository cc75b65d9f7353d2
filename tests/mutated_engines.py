"""A small engine, JSON texts and a safetensors file, as bad disks and hostile builders would leave them.

What is edited here is sealed and hashed again where the edit would be found by a hash, so that it reaches what is
behind the hashes.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsv2_compile.engine import manifest as manifests
from dsv2_compile.engine.manifest import FILE_NAME, FileEntry, ProgramEntry
from dsv2_compile.engine.placement import Placement
from dsv2_compile.plan import text
from dsv2_compile.plan.plan import FILE as PLAN
from tests import native_plans, toy_engine

Files = dict[str, bytes]
"""An engine: its files by path, the manifest among them."""


def engine() -> Files:
    """Loads but for its kernels, which are none."""
    toy = native_plans.toy()
    plan = dataclasses.replace(toy, programs={n: toy.programs[n] for n in ("prefill", "decode-deep")})
    files = {k.cubin: k.symbol.encode() for k in plan.kernels}
    files |= {PLAN: text.to_bytes(plan), "weights/1.bin": b"w" * (64 + 480 + 160), "config.json": b"{}\n"}
    entries = {p: FileEntry(hashlib.sha256(d).hexdigest(), len(d)) for p, d in files.items()}
    weights = {
        "embed": Placement("weights/1.bin", 64, 480, "bfloat16", (30, 8)),
        "head": Placement("weights/1.bin", 544, 160, "bfloat16", (10, 8)),
        "none": Placement("weights/1.bin", 704, 0, "float32", (0, 3)),
    }
    example = toy_engine.manifest()
    program = example.programs["decode"]
    programs = {"decode": ProgramEntry(PLAN, program.inputs, program.outputs, "absorbed", {"a": "1"})}
    made = dataclasses.replace(
        example, backend="cuda", target="h800", files=entries, weights=weights, programs=programs
    )
    return {**files, FILE_NAME: made.to_bytes()}


def sealed(body: bytes) -> bytes:
    return manifests.seal(body.rstrip().removesuffix(b"}").rstrip())


def with_manifest(files: Files, value: Any) -> Files:
    return {**files, FILE_NAME: sealed(json.dumps(value).encode())}


def value_of(files: Files) -> dict[str, Any]:
    """The manifest as JSON, without its seal."""
    return {k: v for k, v in json.loads(files[FILE_NAME]).items() if k != "sha256"}


def with_plan(files: Files, plan: bytes) -> Files:
    value = value_of(files)
    value["files"][PLAN] = {"sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
    return with_manifest({**files, PLAN: plan}, value)


def write(root: Path, files: Files) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


# ---- Edits ----------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**48, 2**48 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5,
    1.0, 1e308, float("inf"), float("nan"), "", "a", "rows", "../x", "/x", "a/b", "a b", "A", "\0", "é", "\ud800",
    "0" * 64, "manifest.json", "Plan.json", "plan.json/x", "x" * 300, "x" * 70_000, [], {}, [[]], {"a": 1}, [0] * 9,
]  # fmt: skip
TOKENS = [
    *(json.dumps(v).encode() for v in ODD), b"[", b"]", b"{", b"}", b",", b":", b'"a":1,', b"01", b"1.", b"-", b"1e999",
    b"1e-999", b"-0", b"0.1e1", b"1" * 65 + b".0", b"[" * 25 + b"]" * 25, b"[" * 26 + b"]" * 26, b"tru",
    b"[" * 24 + b"0" + b"]" * 24,
    b'"\\ud83d\\ude00"', b'"\\udc00"', b'"\\x"', b'"\t"', b'"\xff"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf", b"\x00",
    b"/**/", b"'a'", b"Infinity", b"\x0b",
]  # fmt: skip
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|\s+|[^\s{}\[\]:,"]+|"')


def edit_bytes(data: bytes, rng: random.Random) -> bytes:
    out, at, length = bytearray(data), rng.randrange(len(data)), rng.choice((1, 1, 2, 5, 20))
    match rng.randrange(5):
        case 0:
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            del out[at : at + length]
        case 2:
            out[at:at] = rng.choice((rng.randbytes(length), data[at : at + length]))
        case 3:
            out[at : at + length] = bytes(length)
        case _:
            del out[at:]
    return bytes(out)


def edit_tokens(data: bytes, rng: random.Random) -> bytes:
    """A token or some dropped, repeated (so that keys come twice), moved or replaced."""
    tokens = _TOKEN.findall(data)
    at, length = rng.randrange(len(tokens)), rng.choice((1, 1, 2, 4, 8))
    some = tokens[at : at + length]
    match rng.randrange(5):
        case 0:
            del tokens[at : at + length]
        case 1:
            tokens[at:at] = some
        case 2:
            del tokens[at : at + length]
            to = rng.randrange(len(tokens) + 1)
            tokens[to:to] = some
        case 3:
            tokens[at : at + 1] = [rng.choice(TOKENS)]
        case _:
            tokens.insert(at, rng.choice(TOKENS))
    return b"".join(tokens)


def edit_value(value: Any, rng: random.Random) -> Any:
    """One place of a JSON value changed, lost, added or renamed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    holder, key = rng.choice(places)
    old = holder[key]
    match rng.randrange(6):
        case 0:
            holder[key] = rng.choice(ODD)
        case 1:
            other, at = rng.choice(places)
            holder[key], other[at] = copy.deepcopy(other[at]), old
        case 2 if isinstance(holder, dict):
            holder[rng.choice(("extra", key.upper(), key + "/x", "../" + key, "é", ""))] = old
        case 3 if isinstance(holder, dict):
            holder[rng.choice(("A", key.upper(), key + "s"))] = holder.pop(key)
        case 4:
            del holder[key]
        case _ if isinstance(old, int | float) and not isinstance(old, bool):
            holder[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, float(old), str(old)))
        case _ if isinstance(holder, list):
            holder.insert(key, old)
        case _:
            holder[key] = [old]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


# ---- Engines --------------------------------------------------------------------------------------------------------


def _disk(files: Files, rng: random.Random) -> Files:
    path = rng.choice(sorted(files))
    return {**files, path: edit_bytes(files[path], rng)}


def _manifest_bytes(files: Files, rng: random.Random) -> Files:
    return {**files, FILE_NAME: sealed(edit_bytes(json.dumps(value_of(files)).encode(), rng))}


def _manifest_tokens(files: Files, rng: random.Random) -> Files:
    return {**files, FILE_NAME: sealed(edit_tokens(json.dumps(value_of(files)).encode(), rng))}


def _manifest_value(files: Files, rng: random.Random) -> Files:
    return with_manifest(files, edit_value(value_of(files), rng))


def _plan_bytes(files: Files, rng: random.Random) -> Files:
    return with_plan(files, edit_bytes(files[PLAN], rng))


def _plan_tokens(files: Files, rng: random.Random) -> Files:
    return with_plan(files, edit_tokens(files[PLAN], rng))


def _plan_value(files: Files, rng: random.Random) -> Files:
    return with_plan(files, json.dumps(edit_value(json.loads(files[PLAN]), rng)).encode())


ENGINE_EDITS: dict[str, Callable[[Files, random.Random], Files]] = {
    "disk": _disk,
    "manifest bytes": _manifest_bytes,
    "manifest tokens": _manifest_tokens,
    "manifest value": _manifest_value,
    "plan bytes": _plan_bytes,
    "plan tokens": _plan_tokens,
    "plan value": _plan_value,
}


def engines(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """``count`` edited engines, each with what was edited. The edits take turns."""
    rng, whole = random.Random(seed), engine()
    kinds = list(ENGINE_EDITS)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        files = ENGINE_EDITS[kind](whole, rng)
        yield kind, write(folder / str(i), files)


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


# ---- Single files ---------------------------------------------------------------------------------------------------


def json_texts(seeds: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    yield from TOKENS
    yield from (b"[" + t + b"]" for t in TOKENS)
    yield from (b'{"a":' + t + b"}" for t in TOKENS)
    for _ in range(count):
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = rng.choice((edit_bytes, edit_tokens))(data, rng) or b"0"
        yield data


def safetensors_file() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        "c": {"dtype": "F4", "shape": [2, 3], "data_offsets": [12, 15]},
        "d": {"dtype": "U8", "shape": [0, 9], "data_offsets": [15, 15]},
        "e": {"dtype": "I8", "shape": [0] * 8, "data_offsets": [15, 15]},
    }
    return framed(json.dumps(header).encode(), bytes(15))


def framed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def safetensors_files(count: int, seed: int) -> Iterator[bytes]:
    rng, whole = random.Random(seed), safetensors_file()
    header, data = whole[8:-15], whole[-15:]
    yield whole
    yield whole.replace(b"[0, 0, ", b"[0,0,0,")  # a ninth dim, in as many bytes
    yield whole.replace(b'"pt"', b"1234")
    for i in range(count):
        match i % 4:
            case 0:
                yield edit_bytes(whole, rng)
            case 1:
                yield framed(edit_tokens(header, rng), data)
            case 2:
                yield framed(json.dumps(edit_value(json.loads(header), rng)).encode(), data)
            case _:
                yield (
                    struct.pack("<Q", rng.choice((0, len(header) - 1, 2**25, 2**25 + 1, 2**63, 2**64 - 1))) + whole[8:]
                )
