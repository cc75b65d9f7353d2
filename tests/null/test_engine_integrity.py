"""Nothing of a changed engine is loaded: every changed byte, cut, stray file, link and escape."""

from __future__ import annotations

import os
import random
import shutil
import socket
from pathlib import Path

import onnxruntime
import pytest

from dsv2_compile.engine import integrity
from dsv2_compile.errors import IntegrityError, UsageError
from dsv2_compile.runtime import Engine
from tests import toy_engine


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines") / "toy"
    toy_engine.build(out)
    return out


@pytest.fixture
def engine(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "toy"))


@pytest.fixture
def no_loading(monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("a program was loaded")

    monkeypatch.setattr(onnxruntime, "InferenceSession", loaded)


def test_an_untouched_copy_loads(engine):
    with Engine.load(engine, threads=1) as loaded:
        assert loaded.manifest == integrity.read_manifest(engine)


def files_of(engine: Path) -> list[Path]:
    return sorted(p for p in engine.rglob("*") if p.is_file())


def test_1000_flipped_bits_and_100_cuts_are_all_caught(engine, no_loading):
    rng = random.Random(3)
    files = files_of(engine)
    assert len(files) == 8
    for i in range(1000):
        path = files[i % len(files)]  # each file gets its share, however small
        original = path.read_bytes()
        bad = bytearray(original)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(IntegrityError):
            Engine.load(engine)
        path.write_bytes(original)
    for i in range(100):
        path = files[i % len(files)]
        original = path.read_bytes()
        path.write_bytes(original[: rng.randrange(len(original))])
        with pytest.raises(IntegrityError):
            Engine.load(engine)
        path.write_bytes(original)
    integrity.verify(engine, integrity.read_manifest(engine))


def _stray_file(e: Path) -> None:
    (e / "extra.so").write_bytes(b"x")


def _stray_in_folder(e: Path) -> None:
    (e / "weights" / "weights-99999.safetensors").write_bytes(b"x")


def _empty_folder(e: Path) -> None:
    (e / "empty").mkdir()


def _missing(e: Path) -> None:
    (e / "decode.onnx").unlink()


def _link_to_same_bytes(e: Path) -> None:
    (e / "decode.onnx").rename(e.parent / "elsewhere")
    (e / "decode.onnx").symlink_to(e.parent / "elsewhere")


def _linked_folder(e: Path) -> None:
    (e / "weights").rename(e.parent / "w")
    (e / "weights").symlink_to(e.parent / "w")


def _hard_link(e: Path) -> None:
    os.link(e / "decode.onnx", e.parent / "second-name")


def _fifo(e: Path) -> None:
    (e / "decode.onnx").unlink()
    os.mkfifo(e / "decode.onnx")


def _socket(e: Path) -> None:
    here = os.getcwd()
    os.chdir(e)  # socket paths are short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("s")
    os.chdir(here)


def _folder_for_file(e: Path) -> None:
    (e / "decode.onnx").unlink()
    (e / "decode.onnx").mkdir()


def _linked_manifest(e: Path) -> None:
    (e / "manifest.json").rename(e.parent / "m")
    (e / "manifest.json").symlink_to(e.parent / "m")


def _fifo_manifest(e: Path) -> None:
    (e / "manifest.json").unlink()
    os.mkfifo(e / "manifest.json")


def _no_manifest(e: Path) -> None:
    (e / "manifest.json").unlink()


CASES = [
    _stray_file,
    _stray_in_folder,
    _empty_folder,
    _missing,
    _link_to_same_bytes,
    _linked_folder,
    _hard_link,
    _fifo,
    _socket,
    _folder_for_file,
    _linked_manifest,
    _fifo_manifest,
    _no_manifest,
]


@pytest.mark.parametrize("change", CASES, ids=lambda f: f.__name__.strip("_"))
def test_strays_links_and_missing_files_are_refused(engine, no_loading, change):
    change(engine)
    with pytest.raises(IntegrityError) as e:
        Engine.load(engine)
    assert e.value.exit_code == 8


def test_every_problem_is_listed(engine):
    (engine / "extra").write_bytes(b"x")
    (engine / "config.json").unlink()
    with pytest.raises(IntegrityError) as e:
        integrity.verify(engine, integrity.read_manifest(engine))
    assert set(e.value.problems) == {"extra: not listed in the manifest", "config.json: missing"}


def test_no_such_directory_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError):
        Engine.load(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        Engine.load(tmp_path / "file")
