"""Edits of bytes, of JSON text and of JSON values, and single files so edited: JSON texts, a safetensors file."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

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
