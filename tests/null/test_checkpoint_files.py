"""Cases 1, 2, 3 and 5: files that are not what they say, and names that lead elsewhere."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.files import FileError
from dsv2_compile.checkpoint.safetensors_file import HeaderError, SafetensorsFile
from dsv2_compile.errors import ModelError
from tests.checkpoints import join, read_index, same_bits, shard_name, split, tiny_tensors, write, write_index

GIB = 1 << 30
TWO = {"a": torch.arange(4.0), "b": torch.arange(6, dtype=torch.bfloat16).view(2, 3)}


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(folder: Path, data: bytes) -> ModelError:
    """The error about ``model.safetensors`` in an otherwise good checkpoint."""
    if not folder.exists():
        write(folder, {}, shards=1)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError) as e:
        Checkpoint.open(folder)
    assert e.value.exit_code == 3
    assert all(p.startswith("model.safetensors: ") for p in e.value.problems), e.value.problems
    assert e.value.problems
    return e.value


HEADERS = {
    "empty file": (b"", "incomplete: the file is empty"),
    "1 byte": (b"\x01", "incomplete: 1 bytes, expected more than 8"),
    "7 bytes": (b"\0" * 7, "incomplete: 7 bytes"),
    "header of 0 bytes": (b"\0" * 8, "not valid JSON"),
    "header past the file": ((100).to_bytes(8, "little") + b"{}", "incomplete: 10 bytes, expected more than 108"),
    "header one past the file": ((3).to_bytes(8, "little") + b"{}", "incomplete: 10 bytes, expected more than 11"),
    "header of 1 GiB": (GIB.to_bytes(8, "little") + b"{}", f"header of {GIB} bytes, the limit is"),
    "header of 2^63 bytes": ((1 << 63).to_bytes(8, "little") + b"{}", "the limit is"),
    "header of 2^64 - 1 bytes": (b"\xff" * 8 + b"{}", "the limit is"),
    "not JSON": (join("{'a': 1}", b""), "malformed header: not valid JSON"),
    "not an object": (join("[1, 2]", b""), "malformed header: not a JSON object"),
    "not UTF-8": (join(b'{"\xff": 1}', b""), "malformed header: not valid JSON"),
    "a pickle": (b"\x80\x04\x95\x10" + b"\0" * 40, "the limit is"),
    "deep": (join("[" * 100_000 + "]" * 100_000, b""), "nested deeper than"),
    "many": (join("{" + ",".join(f'"{i}":1' for i in range(300_000)) + "}", b""), "more than 200000 elements"),
    "duplicate tensor": (join('{"x": 1, "x": 1}', b""), "duplicate key 'x'"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_header(name, tmp_path):
    """Case 1."""
    data, text = HEADERS[name]
    assert text in refused(tmp_path / "m", data).problems[0]


LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "overlap": ({"x": entry("F32", [4], 0, 16), "y": entry("F32", [4], 8, 24)}, "tensor 'y': its data overlaps"),
    "same place": ({"x": entry("F32", [4], 0, 16), "y": entry("F32", [4], 0, 16)}, "tensor 'y': its data overlaps"),
    "hole": ({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 16, 24)}, "tensor 'y': its data leaves a hole"),
    "hole at the start": ({"x": entry("F32", [4], 8, 24)}, "tensor 'x': its data leaves a hole"),
    "past the end": ({"x": entry("F32", [8], 0, 32)}, "the data of 'x' are past the end"),
    "far past the end": ({"x": entry("F32", [1 << 60], 0, 1 << 62)}, "the data of 'x' are past the end"),
    "bytes after the last": ({"x": entry("F32", [2], 0, 8)}, "16 bytes after the last tensor"),
    "backwards": ({"x": entry("F32", [4], 16, 0)}, "tensor 'x': data_offsets [16, 0] are not a begin and an end"),
    "negative": ({"x": entry("F32", [4], -16, 0)}, "tensor 'x': data_offsets"),
    "shape x dtype is 2^64": ({"x": entry("F32", [1 << 31, 1 << 31], 0, 0)}, "tensor 'x': F32"),
    "shape x dtype is 2^64 + 24": ({"x": entry("U8", [1 << 62, 4], 0, 24)}, "tensor 'x': U8"),
    "shape too small": ({"x": entry("F32", [5], 0, 24)}, "tensor 'x': F32 [5] is 160 bits, data_offsets give 24"),
    "negative dims": ({"x": entry("F32", [-2, -3], 0, 24)}, "tensor 'x': shape [-2, -3] is not a list"),
    "float dim": ({"x": entry("F32", [6.0], 0, 24)}, "tensor 'x': shape [6.0] is not a list"),
    "true as dim": ({"x": entry("U8", [True, 24], 0, 24)}, "tensor 'x': shape [True, 24] is not a list"),
    "9 dims": ({"x": entry("F32", [6, *[1] * 8], 0, 24)}, "is not a list of up to 8 sizes"),
    "unknown dtype": ({"x": entry("F33", [6], 0, 24)}, "tensor 'x': unknown dtype 'F33'"),
    "dtype is a list": ({"x": entry(["F32"], [6], 0, 24)}, "tensor 'x': unknown dtype"),  # type: ignore[arg-type]
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 24]}}, "tensor 'x': its entry is not"),
    "another key": ({"x": entry("F32", [6], 0, 24) | {"url": "x"}}, "tensor 'x': its entry is not"),
    "null": ({"x": None}, "tensor 'x': its entry is not"),
    "three offsets": ({"x": entry("F32", [6], 0, 24) | {"data_offsets": [0, 8, 24]}}, "tensor 'x': data_offsets"),
    "metadata": ({"__metadata__": {"a": 1}, "x": entry("F32", [6], 0, 24)}, "__metadata__ is not an object of strings"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_bad_layout(name, tmp_path):
    """Case 2. The data are 24 bytes."""
    header, text = LAYOUTS[name]
    assert text in "\n".join(refused(tmp_path / "m", join(header, bytes(24))).problems)


def test_every_bad_tensor_is_listed(tmp_path):
    header = {f"t{i}": entry("F33", [i], 0, 0) for i in range(7)}
    assert len(refused(tmp_path / "m", join(header, b"")).problems) == 7


def test_names_are_shown_on_one_line(tmp_path):
    problem = refused(tmp_path / "m", join({"evil\n\x1b[31m" + "x" * 5000: None}, b"")).problems[0]
    assert problem.isprintable() and len(problem) < 200


def test_a_shard_cut_anywhere_says_so(tmp_path):
    """Case 3: 50 places, of them 10 in the first 8 bytes and the header."""
    folder = write(tmp_path / "m", tiny_tensors(), shards=3)
    path = folder / shard_name(1, 3)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(7)
    cuts = [0, 1, 7, 8, 9, start - 1, *rng.sample(range(10, start - 1), 4), start, start + 1, len(whole) - 1]
    cuts += rng.sample(range(start + 2, len(whole) - 1), 50 - len(cuts))
    assert len(set(cuts)) == 50
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError) as e:
            Checkpoint.open(folder)
        assert e.value.exit_code == 3 and "Fetch the files that are incomplete again" in e.value.remedy
        (problem,) = e.value.problems
        assert problem.startswith(f"{path.name} (shard 2 of 3): incomplete: "), problem
        if cut >= start:
            assert f"{cut} bytes, expected {len(whole)}" in problem
    path.write_bytes(whole)
    Checkpoint.open(folder)


def outside(tmp_path: Path) -> Path:
    """A good shard that no checkpoint of these tests may reach by name."""
    path = tmp_path / "outside" / "secret.safetensors"
    path.parent.mkdir()
    path.write_bytes(save(TWO))
    return path


PROBE = """
import json, os, sys
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.errors import ModelError
opened = []
record = lambda event, args: event == "open" and not isinstance(args[0], int) and opened.append(os.fsdecode(args[0]))
sys.addaudithook(record)
out = {}
for folder in sys.argv[1:]:
    opened.clear()
    try:
        Checkpoint.open(folder)
        problems = []
    except ModelError as e:
        assert e.exit_code == 3
        problems = e.problems or [e.cause]
    out[folder] = [os.path.realpath(p) for p in opened], problems
print(json.dumps(out))
"""
"""Opens every argument; prints the files that the process opened for each, and what was wrong."""

INDEXED = [
    "../outside/secret.safetensors",
    "{tmp}/outside/secret.safetensors",
    "/dev/zero",
    "link",
    "chain",
    "fifo",
    "device",
    "folder",
    "sub/x.safetensors",
    "a\0b",
    "",
    "..",
    "..\\outside\\secret.safetensors",
    "missing.safetensors",
    "x" * 300,
    "a\nb",
]
LINKED = ["config.json", "tokenizer.json", "model.safetensors.index.json", shard_name(0, 2)]
SETTINGS = ("config.json", "model.safetensors.index.json")


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> tuple[Path, dict[str, tuple[list[str], list[str]]]]:
    """All bad checkpoints, opened in one process: (their folder, folder -> files opened, problems)."""
    tmp = tmp_path_factory.mktemp("names")
    secret = outside(tmp)
    for i, name in enumerate(INDEXED):
        folder = write(tmp / f"indexed{i}", tiny_tensors(), shards=2)
        (folder / "link").symlink_to(secret)
        (folder / "hop").symlink_to("../outside/secret.safetensors")
        (folder / "chain").symlink_to("hop")
        (folder / "device").symlink_to("/dev/zero")
        (folder / "folder").mkdir()
        (folder / "sub").mkdir()
        (folder / "sub/x.safetensors").write_bytes(save(TWO))
        os.mkfifo(folder / "fifo")
        index = read_index(folder)
        victim = next(n for n, f in index.items() if f == shard_name(0, 2))
        write_index(folder, index | {victim: name.replace("{tmp}", str(tmp))})
    for i, file in enumerate(LINKED):
        folder = write(tmp / f"linked{i}", tiny_tensors(), shards=2)
        (folder / file).touch()  # tokenizer.json is not there yet
        target = tmp / "outside" / f"{i}"
        (folder / file).rename(target)
        (folder / file).symlink_to(target)
    folders = [str(tmp / f"{kind}{i}") for kind, n in (("indexed", INDEXED), ("linked", LINKED)) for i in range(len(n))]
    run = subprocess.run([sys.executable, "-c", PROBE, *folders], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return tmp, json.loads(run.stdout)


class TestNames:
    """Case 5: what an index or a directory entry may not lead to."""

    @pytest.mark.parametrize("i", range(len(INDEXED)), ids=[ascii(n)[1:-1][:40] for n in INDEXED])
    def test_never_opened(self, i, probed):
        tmp, results = probed
        folder = tmp / f"indexed{i}"
        opened, problems = results[str(folder)]
        good = {str(folder / n) for n in (*SETTINGS, shard_name(0, 2), shard_name(1, 2))}
        assert {p for p in opened if p.startswith((str(tmp), "/dev/"))} == good
        shown = ascii(INDEXED[i].replace("{tmp}", str(tmp)))[1:-1][:40]
        assert any(p.startswith(shown) and re.search(r" \(shard \d of 3\): ", p) for p in problems), problems

    @pytest.mark.parametrize("i", range(len(LINKED)), ids=LINKED)
    def test_links_out_of_the_folder(self, i, probed):
        tmp, results = probed
        opened, problems = results[str(tmp / f"linked{i}")]
        assert not [p for p in opened if p.startswith(f"{tmp}/outside")]
        assert len(problems) == 1
        assert LINKED[i] in problems[0] and "a symbolic link out of the folder" in problems[0]

    def test_a_link_inside_the_folder(self, tmp_path):
        folder = write(tmp_path / "m", tiny_tensors())
        (folder / "model.safetensors").rename(folder / "real.bin")
        (folder / "model.safetensors").symlink_to("real.bin")
        assert Checkpoint.open(folder).dtype == "float32"

    def test_a_hard_link(self, tmp_path):
        """A file with two names is the file itself: how one gives large shards another config.json."""
        folder = write(tmp_path / "m", tiny_tensors())
        os.link(folder / "model.safetensors", tmp_path / "second")
        assert Checkpoint.open(folder).dtype == "float32"

    def test_a_snapshot_of_the_hub_cache(self, tmp_path):
        """Links from snapshots/COMMIT to the blobs of the same repository, and no others."""
        repository = tmp_path / "models--a--b"
        folder = write(repository / "snapshots" / ("0" * 40), tiny_tensors())
        (repository / "blobs").mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).rename(repository / "blobs" / name[::-1])
            (folder / name).symlink_to(f"../../blobs/{name[::-1]}")
        assert Checkpoint.open(folder).dtype == "float32"
        (tmp_path / "alias").symlink_to(folder)
        assert Checkpoint.open(tmp_path / "alias").dtype == "float32"
        (repository / "blobs").rename(tmp_path / "blobs")
        (repository / "blobs").symlink_to(tmp_path / "blobs")
        with pytest.raises(ModelError, match="a symbolic link out of the folder"):
            Checkpoint.open(folder)

    def test_a_link_loop(self, tmp_path):
        folder = write(tmp_path / "m", tiny_tensors())
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to("model.safetensors")
        with pytest.raises(ModelError) as e:
            Checkpoint.open(folder)
        assert len(e.value.problems) == 1


def verdict(folder: Path, data: bytes) -> dict[str, torch.Tensor] | None:
    (folder / "f").write_bytes(data)
    try:
        file = SafetensorsFile(folder, "f")
    except (HeaderError, FileError):
        return None
    known = {n: e for n, e in file.entries.items() if e.dtype in ("F32", "BF16", "F16")}
    return {name: file.tensor(e) for name, e in known.items()}


def mutate(rng: random.Random, data: bytes) -> bytes:
    header, tail = split(data)
    text = bytearray(json.dumps(header).encode())
    for _ in range(rng.choice((1, 1, 2))):
        spans = [m.span() for m in re.finditer(rb"\d+", text)]
        kind = rng.randrange(4)
        if kind == 0:
            at = rng.choice(spans)
            text[slice(*at)] = str(rng.choice((0, 1, 2, 3, 4, 6, 12, 16, 28, 1 << 32, 1 << 63, 1 << 64))).encode()
        elif kind == 1:
            text[rng.randrange(len(text))] = rng.randrange(256)
        elif kind == 2:
            old, new = rng.sample((b"F32", b"BF16", b"F16", b"I32", b"U8", b"BOOL", b"F8_E4M3"), 2)
            text = bytearray(bytes(text).replace(old, new))
        else:
            tail = tail[: rng.randrange(len(tail) + 1)] + bytes(rng.choice((0, 0, 1, 8)))
    return join(bytes(text), tail)


def test_nothing_is_accepted_that_the_library_refuses(tmp_path):
    """2000 mutated files: what is read here, the safetensors library reads with the same values."""
    rng = random.Random(11)
    original = save(TWO)
    accepted = 0
    for _ in range(2000):
        data = mutate(rng, original)
        ours = verdict(tmp_path, data)
        if ours is None:
            continue
        accepted += 1
        try:
            with safe_open(tmp_path / "f", "pt") as f:
                names = f.keys()
                theirs = {name: f.get_tensor(name) for name in names}
        except SafetensorError as e:
            pytest.fail(f"accepted what the library refuses with {e}: {data!r}")
        assert ours.keys() == {n for n, t in theirs.items() if t.is_floating_point() and t.element_size() > 1}
        assert all(same_bits(t, theirs[name]) for name, t in ours.items())
    assert 100 < accepted < 1000, accepted
