"""Python and C++ accept and refuse the same engines, JSON texts and safetensors files, with the same exit code."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dsv2_compile.engine import manifest as manifests
from dsv2_compile.engine import strictjson
from dsv2_compile.engine.manifest import FILE_NAME
from dsv2_compile.plan import text
from dsv2_compile.plan.plan import FILE as PLAN
from tests import hostile_engines as hostile
from tests import mutated_engines as mutated
from tests import mutations, verdicts
from tests.cpp_build import SOURCE, program

CORPUS = SOURCE / "tests" / "corpus"


def cpp(kind: str, paths: Iterable[Path]) -> list[verdicts.Verdict]:
    return verdicts.measured([str(program("verdict")), kind], paths).verdicts


def agreed(kind: str, paths: list[Path]) -> list[int]:
    """The codes that both give. Any disagreement, and any code but those of a refusal, fails."""
    found = [(verdicts.python(kind, p), other, p) for p, other in zip(paths, cpp(kind, paths), strict=True)]
    wrong = [(p.name, a, b) for a, b, p in found if a[0] != b[0] or a[0] not in (0, 2, 5, 8)]
    assert not wrong, (len(wrong), wrong[:5])
    return [a[0] for a, _, _ in found]


def written(folder: Path, texts: Iterable[bytes]) -> list[Path]:
    folder.mkdir()
    paths = []
    for i, data in enumerate(texts):
        paths.append(folder / str(i))
        paths[-1].write_bytes(data)
    return paths


def check_engines(folder: Path, count: int, seed: int) -> Counter[tuple[str, int]]:
    """How many of each kind of edit had each code."""
    kinds, paths = zip(*mutated.engines(folder, count, seed), strict=True)
    return Counter(zip(kinds, agreed("engine", list(paths)), strict=True))


def check_json(folder: Path, count: int, seed: int) -> Counter[int]:
    seeds = [p.read_bytes() + b"}" for p in sorted((CORPUS / "manifest").iterdir())]
    return Counter(agreed("json", written(folder, mutations.json_texts(seeds, count, seed))))


def check_safetensors(folder: Path, count: int, seed: int) -> Counter[int]:
    return Counter(agreed("safetensors", written(folder, mutations.safetensors_files(count, seed))))


def test_mutated_engines(tmp_path):
    counts = check_engines(tmp_path, 700, 1)
    assert {k for k, code in counts if code == 0} == set(mutated.ENGINE_EDITS) - {"disk"}, counts
    assert {k for k, code in counts if code == 8} == set(mutated.ENGINE_EDITS)
    assert sum(n for (k, code), n in counts.items() if "plan" in k and code == 0) < 200, "most plans are refused"


def test_mutated_json(tmp_path):
    counts = check_json(tmp_path / "json", 1000, 2)
    assert counts[0] > 50 and counts[8] > 500, counts


def test_mutated_safetensors(tmp_path):
    counts = check_safetensors(tmp_path / "files", 600, 3)
    assert counts[0] > 5 and counts[8] > 400, counts


def test_what_lies_beside_the_right_bytes(tmp_path):
    whole, paths = mutated.engine(), []
    for i, (_, act) in enumerate(hostile.TREES.values()):
        paths.append(mutated.write(tmp_path / str(i) / "engine", whole))
        act(paths[-1])
    expected = [code for code, _ in hostile.TREES.values()]
    assert dict(zip(hostile.TREES, agreed("engine", paths), strict=True)) == dict(
        zip(hostile.TREES, expected, strict=True)
    )


def test_edges_of_what_a_manifest_may_say(tmp_path):
    codes = agreed("engine", list(hostile.edges(tmp_path)))
    assert [(c, place, new) for c, (_, place, new) in zip(codes, hostile.EDGES, strict=True)] == hostile.EDGES


def check_flips(folder: Path, flips: int, cuts: int, seed: int) -> int:
    """Of so many flipped bits, and cuts, in files of an engine, how many C++ refuses as damage."""
    rng, whole = random.Random(seed), mutated.engine()
    paths, names = [], sorted(whole)
    for i in range(flips + cuts):
        path = names[i % len(names)]
        data = bytearray(whole[path])
        if i < flips:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        paths.append(mutated.write(folder / str(i), {**whole, path: bytes(data)}))
    return sum(code == 8 for code, _ in cpp("engine", paths))


def test_every_flip_and_cut_is_found(tmp_path):
    assert check_flips(tmp_path, 200, 50, 4) == 250


def _nested(opening: bytes, closing: bytes) -> bytes:
    return opening * 10**6 + b"0" + closing * 10**6


LARGE = {
    "arrays, deep": _nested(b"[", b"]"),
    "objects, deep": _nested(b'{"a":', b"}"),
    "arrays, deep, never closed": b"[" * 10**6,
    "entries": b"[" + b"0," * 10**6 + b"0]",
    "keys": b"{" + b",".join(b'"%d":0' % i for i in range(10**6)) + b"}",
    "a key twice": b"{" + b",".join(b'"%d":0' % i for i in range(190_000)) + b',"7":0}',
    "a long string": json.dumps({"schema": "x" * 4_000_000}).encode(),
}


GIB = 1 << 30
SHA256_OF_A_GIB = "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"
"""Of zeros."""


def large_engines(folder: Path) -> dict[str, list[Path]]:
    """Each text as plan and as manifest, and a GiB of either."""
    whole = mutated.engine()
    made = {
        name: [
            mutated.write(folder / f"{name}, plan", mutated.with_plan(whole, data)),
            mutated.write(folder / f"{name}, manifest", {**whole, FILE_NAME: manifests.seal(data[:-1])}),
        ]
        for name, data in LARGE.items()
    }
    value = mutated.value_of(whole)
    value["files"][PLAN] = {"sha256": SHA256_OF_A_GIB, "bytes": GIB}
    files = mutated.with_manifest({**whole, PLAN: b""}, value)
    made["a GiB"] = [mutated.write(folder / "plan", files), mutated.write(folder / "manifest", whole)]
    os.truncate(folder / "plan" / PLAN, GIB)
    os.truncate(folder / "manifest" / FILE_NAME, GIB)
    return made


LOADERS = {
    "python": lambda: [sys.executable, "-m", "tests.verdicts", "engine"],
    "cpp": lambda: [str(program("verdict")), "engine"],
}


def check_large(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Processor seconds and peak MB of each loader, for each text as plan and as manifest together."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, paths in large_engines(folder).items():
        for loader, command in LOADERS.items():
            found = verdicts.measured(command(), paths)
            assert [code for code, _ in found.verdicts] == [8, 8], (loader, name, found)
            assert not any("SHA-256" in cause for _, cause in found.verdicts), (loader, name, found)
            assert found.seconds < 5 and found.peak < 500 << 20, (loader, name, found)
            figures.setdefault(name, {})[loader] = {"seconds": round(found.seconds, 2), "peak_mb": found.peak >> 20}
    return figures


def test_large_json_costs_either_loader_neither_time_nor_memory(tmp_path):
    check_large(tmp_path)


def test_the_corpus_of_the_fuzz_targets_is_what_the_parsers_accept():
    for path in (CORPUS / "plan").iterdir():
        if path.name != "version":
            text.parse(path.read_bytes())
    for name in ("cuda", "onnxruntime"):
        manifests.parse(manifests.seal((CORPUS / "manifest" / name).read_bytes()))
    strictjson.loads((CORPUS / "manifest" / "escapes").read_bytes() + b"}", 1 << 20)
    for path in (CORPUS / "safetensors").iterdir():
        assert verdicts.python("safetensors", path) == (0, "")
