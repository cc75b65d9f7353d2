"""The manifest: its published schema, strict parsing, its own seal, and mutations of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import time
from typing import Any

import jsonschema
import pytest

from dsv2_compile.config import ModelConfig, RopeConfig
from dsv2_compile.engine import manifest as manifests
from dsv2_compile.engine import strictjson
from dsv2_compile.engine.manifest import FileEntry
from dsv2_compile.engine.placement import Placement
from dsv2_compile.errors import Dsv2Error, IncompatibleError, IntegrityError
from tests import toy_engine

VALIDATOR = jsonschema.Draft202012Validator(manifests.schema())


def example() -> manifests.Manifest:
    files = {"prefill.onnx": FileEntry("0" * 64, 5), "decode.onnx": FileEntry("1" * 64, 6)}
    files["weights/weights-00001.safetensors"] = FileEntry("2" * 64, 4096)
    weights = {"w": Placement("weights/weights-00001.safetensors", 64, 48, "float32", (3, 4))}
    return toy_engine.manifest(files=files, weights=weights)


def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(example().to_bytes())
    return loaded


def sealed(value: Any) -> bytes:
    """As a hostile builder would write it: malformed, with a valid seal."""
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if k != "sha256"}
    return manifests.seal(json.dumps(value, indent=1).removesuffix("\n}").encode())


def test_round_trip_and_published_schema():
    data = example().to_bytes()
    assert manifests.parse(data) == example()
    assert manifests.parse(data).to_bytes() == data
    jsonschema.Draft202012Validator.check_schema(manifests.schema())
    VALIDATOR.validate(json.loads(data))


def test_schema_lists_exactly_the_fields_of_the_model_config():
    defs = manifests.schema()["$defs"]
    assert set(defs["model"]["properties"]) == {f.name for f in dataclasses.fields(ModelConfig)}
    assert set(defs["rope"]["properties"]) == {f.name for f in dataclasses.fields(RopeConfig)}


def test_nothing_about_time_or_place_is_in_it():
    assert not {"time", "date", "host", "user", "path"} & set(raw())
    with pytest.raises(IntegrityError, match="is not in files"):
        dataclasses.replace(example(), files={"a": FileEntry("0" * 64, 1)}).to_bytes()


def test_every_flipped_byte_is_caught_by_the_seal():
    data = example().to_bytes()
    for i in range(len(data)):
        bad = bytearray(data)
        bad[i] ^= 1 << (i % 8)
        with pytest.raises(IntegrityError):
            manifests.parse(bytes(bad))
    for cut in range(0, len(data), 37):
        with pytest.raises(IntegrityError):
            manifests.parse(data[:cut])


def test_another_schema_version_is_incompatible_not_damaged():
    for version in ("dsv2/engine/2", "dsv2/engine/0"):
        with pytest.raises(IncompatibleError, match=version):
            manifests.parse(sealed({**raw(), "schema": version, "new key": 1}))


def _set(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    value = copy.deepcopy(value)
    *parents, last = path.split(">")
    at: Any = value
    for p in parents:
        at = at[p]
    if new is KeyError:
        del at[last]
    else:
        at[last] = new
    return value


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("extra", 1),
        ("model>extra", 1),
        ("programs>prefill>extra", 1),
        ("backend", KeyError),
        ("status", "good"),
        ("status", None),
        ("max_batch_size", 0),
        ("max_batch_size", True),
        ("max_batch_size", "8"),
        ("max_seq_len", 1.5),
        ("max_seq_len", 10**9),
        ("model>num_hidden_layers", 10**9),
        ("model>vocab_size", -1),
        ("model>rope", None),
        ("symbols>batch", [5, 1]),
        ("symbols>batch", [1]),
        ("programs", {}),
        ("programs>prefill>file", "missing.onnx"),
        ("programs>prefill>file", "../prefill.onnx"),
        ("files>/etc/passwd", {"sha256": "0" * 64, "bytes": 1}),
        ("files>a/../../b", {"sha256": "0" * 64, "bytes": 1}),
        ("files>a\\b", {"sha256": "0" * 64, "bytes": 1}),
        ("files>a\x00b", {"sha256": "0" * 64, "bytes": 1}),
        ("files>.hidden", {"sha256": "0" * 64, "bytes": 1}),
        ("files>a//b", {"sha256": "0" * 64, "bytes": 1}),
        ("files>trailing\n", {"sha256": "0" * 64, "bytes": 1}),
        ("files>manifest.json", {"sha256": "0" * 64, "bytes": 1}),
        ("files>PREFILL.onnx", {"sha256": "0" * 64, "bytes": 1}),
        ("files>prefill.onnx/x", {"sha256": "0" * 64, "bytes": 1}),
        ("files>prefill.onnx", {"sha256": "0" * 63, "bytes": 1}),
        ("files>prefill.onnx", {"sha256": "0" * 64, "bytes": -1}),
        ("weights>w>offset", 10**6),
        ("weights>w>offset", -64),
        ("weights>w>nbytes", 44),
        ("weights>w>shape", [2**40, 2**40]),
        ("weights>w>dtype", "float31"),
        ("weights>w>file", "weights/other.safetensors"),
        ("toolchain>python", 3),
        ("source", None),
        ("passes", [1]),
    ],
)
def test_malformed_with_a_valid_seal_is_refused(path, new):
    with pytest.raises(IntegrityError) as e:
        manifests.parse(sealed(_set(raw(), path, new)))
    assert e.value.problems
    assert "\n" not in e.value.cause


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": 1, "a": 1', "duplicate key"),
        (b'{"a": NaN', "not a JSON number"),
        (b'{"a": 1e999', "out of range"),
        (b'{"a": ' + b"9" * 5000, "64 bits"),
        (b'{"a": "\\ud800"', "surrogate"),
        (b'{"a": "\xff"', "not valid JSON"),
        (b'{"a": ' + b"[" * 10**6 + b"]" * 10**6, "nested"),
        (b'{"a": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40, "nested"),
        (b'{"a": [' + b"1," * 10**6 + b"1]", "elements"),
        (b'{"a": "' + b"x" * 100_000 + b'"', "characters"),
        (b'{"a": "' + b"x" * (9 << 20) + b'"', "limit"),
        (b"[1", "not valid JSON"),
    ],
)
def test_hostile_json_is_refused_quickly(text, why):
    start = time.perf_counter()
    with pytest.raises(IntegrityError, match=why):
        manifests.parse(manifests.seal(text))
    assert time.perf_counter() - start < 2


def _mutate(value: Any, rng: random.Random) -> Any:
    """Replace, drop, add or duplicate one randomly chosen node."""
    junk: list[Any] = [None, True, -1, 0, 2**40, 2**62, 0.5, "", "x", "../x", "é" * 300, [], {}, [[]], {"file": 1}]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        change = rng.random()
        if change < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if change < 0.2:
            return {**value, rng.choice(["x", key + "x", "\x7f", ""]): value[key]}
        return {**value, key: _mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], _mutate(value[i], rng), *value[i + rng.randrange(2) :]]
    if isinstance(value, str) and value and rng.random() < 0.5:
        i = rng.randrange(len(value))
        return value[:i] + rng.choice(["/", "..", "\0", "\n", "0", "A", ""]) + value[i + 1 :]
    return rng.choice(junk)


def test_2000_structural_mutations_give_a_typed_error_and_the_schema_agrees():
    rng = random.Random(7)
    original, outcomes = raw(), {"refused": 0, "accepted": 0}
    for _ in range(2000):
        value = _mutate(original, rng)
        data = sealed(value)
        try:
            parsed = manifests.parse(data)
        except Dsv2Error as e:
            assert e.exit_code in (5, 8)
            outcomes["refused"] += 1
        else:
            outcomes["accepted"] += 1
            assert parsed.to_bytes()
            assert VALIDATOR.is_valid(json.loads(data)), "parsed, but the published schema refuses it"
    assert min(outcomes.values()) > 100, outcomes


def test_our_schema_checker_and_jsonschema_give_the_same_verdict():
    rng = random.Random(8)
    for _ in range(500):
        value = _mutate(raw(), rng)
        ours = not list(strictjson.problems(value, manifests.schema(), manifests.schema()))
        theirs = VALIDATOR.is_valid(value)
        # jsonschema searches patterns, so its ^...$ lets a trailing newline through; ours does not
        assert ours == theirs or (theirs and "\\n" in json.dumps(value)), value


def test_5000_byte_mutations_below_a_valid_seal_never_crash():
    rng = random.Random(9)
    body = example().to_bytes()[: -manifests._SEAL_BYTES]
    tokens = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\u", b"-", b"1e9", b"null", b"\x00", b"\xf0\x9f", b"../"]
    for _ in range(5000):
        bad = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            i = rng.randrange(len(bad))
            bad[i : i + rng.randrange(3)] = rng.choice(tokens) if rng.random() < 0.5 else bytes([rng.randrange(256)])
        try:
            manifests.parse(manifests.seal(bytes(bad)))
        except Dsv2Error as e:
            assert e.exit_code in (5, 8)
