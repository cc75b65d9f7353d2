"""Writing an engine: layout of the weights, refused targets, resuming, same bytes, faults, kills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsv2_compile.engine import integrity, writer
from dsv2_compile.engine.shards import ALIGNMENT, plan_shards
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.errors import Dsv2Error, ModelError, ResourceError, UsageError
from dsv2_compile.weights import Recipe, Source, Stack
from tests import engine_faults, toy_engine
from tests.engine_faults import at_each_operation, failing, nothing


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


class Counting(toy_engine.ToySource):
    """Counts the tensors read, and may stop the build at one of them."""

    def __init__(self, seed: int = 0, stop_at: str | None = None) -> None:
        super().__init__(seed)
        self.read: list[str] = []
        self.stop_at = stop_at

    def tensor(self, name: str) -> torch.Tensor:
        if name == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(name)
        return super().tensor(name)


def test_weights_are_plain_safetensors_and_placements_point_at_them(tmp_path):
    manifest = toy_engine.build(tmp_path / "e")
    source = toy_engine.ToySource()
    stored = {k: v for f in sorted((tmp_path / "e/weights").iterdir()) for k, v in load_file(f).items()}
    assert set(stored) == {"emb", "pos", "k", "w"}  # emb.again is emb
    assert manifest.weights["emb.again"] == manifest.weights["emb"]
    for name, recipe in toy_engine.recipes().items():
        expected = recipe.evaluate(source, torch.float32)
        p = manifest.weights[name]
        data = (tmp_path / "e" / p.file).read_bytes()[p.offset : p.offset + p.nbytes]
        assert data == expected.numpy().tobytes()
        assert p.shape == tuple(expected.shape)
    assert len({p.file for p in manifest.weights.values()}) == 3
    assert all(
        min(q.offset for q in manifest.weights.values() if q.file == p.file) % ALIGNMENT == 0
        for p in manifest.weights.values()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    source = toy_engine.ToySource()
    with EngineWriter(tmp_path / "e") as w:
        w.write_weights(toy_engine.recipes(), source, dtype, 1 << 20)
        (file,) = (w.stage / "weights").iterdir()
        stored = load_file(file)
    for name, tensor in stored.items():
        assert torch.equal(tensor, toy_engine.recipes()[name].evaluate(source, dtype)) or name == "emb"


def test_shards_respect_their_size():
    recipes: dict[str, Recipe] = {f"t{i}": Source(f"t{i}", (10,)) for i in range(7)} | {"big": Source("big", (100,))}
    sizes = [len(s.recipes) for s in plan_shards(recipes, torch.float32, 120)]
    assert sizes == [3, 3, 1, 1]


def test_one_piece_is_in_memory_at_a_time(tmp_path):
    """A stack of 64 blocks of 4 MB must not need the 256 MB of the whole weight."""
    code = """
import resource, sys, torch
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.weights import Source, Stack
class Zeros:
    def tensor(self, name): return torch.full((1024, 1024), 1.0)
stack = Stack(tuple(Source(f"e{i}", (1024, 1024)) for i in range(64)))
Zeros().tensor("x").to(torch.bfloat16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with EngineWriter(sys.argv[1]) as w:
    w.write_weights({"w": stack}, Zeros(), torch.float32)
    assert sum(f.bytes for f in w.files.values()) > 256 << 20
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "e"], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64, run.stdout


def test_a_recipe_whose_pieces_do_not_fit_its_shape_is_found(tmp_path):
    with EngineWriter(tmp_path / "e") as w, pytest.raises(ValueError, match="miss shape"):
        w.write_weights({"w": Stack((Source("k", (3,)),))}, toy_engine.ToySource(), torch.float32)


def test_rebuilding_gives_the_same_bytes(tmp_path):
    toy_engine.build(tmp_path / "e0")
    first = contents(tmp_path / "e0")
    for i in range(1, 10):
        toy_engine.build(tmp_path / f"e{i}")
        assert contents(tmp_path / f"e{i}") == first


# Refused before any work (case 55)


def _refused(out: Path, **kwargs) -> str:
    before = contents(out.parent)
    with pytest.raises(UsageError) as e:
        EngineWriter(out, **kwargs)
    assert contents(out.parent) == before
    assert not list(out.parent.glob(".*.build"))
    return e.value.cause


def test_existing_output_is_refused_without_force(tmp_path):
    toy_engine.build(tmp_path / "e")
    assert "exists" in _refused(tmp_path / "e")


def test_output_that_is_a_file_or_a_link_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"mine")
    (tmp_path / "l").symlink_to(tmp_path)
    for name in ("f", "l"):
        for force in (False, True):
            assert "not a directory" in _refused(tmp_path / name, force=force)


def test_force_does_not_replace_what_is_no_engine(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_bytes(b"mine")
    assert "not an engine" in _refused(tmp_path / "home", force=True)


def test_output_that_is_or_contains_an_input_is_refused(tmp_path):
    model = tmp_path / "m/checkpoint"
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    for out in (model, model.parent):
        assert "input" in _refused(out, force=True, inputs=[tmp_path / "link"])


def test_no_permission_is_a_usage_error(tmp_path):
    """In a child without privileges: root may write anywhere."""
    tmp_path.chmod(0o555)
    code = (
        "import os, sys; from dsv2_compile.engine.writer import EngineWriter\n"
        "from dsv2_compile.errors import UsageError\n"
        "os.getuid() or os.setuid(65534)\n"
        "try: EngineWriter(sys.argv[1])\n"
        "except UsageError as e: print(e.cause)"
    )
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "e"], capture_output=True, text=True, check=False)
    tmp_path.chmod(0o755)
    assert "Permission denied" in run.stdout, run.stderr


def test_an_empty_directory_is_a_fine_output(tmp_path):
    (tmp_path / "e").mkdir()
    toy_engine.build(tmp_path / "e")
    assert engine_faults.identity(tmp_path / "e") == "toy"


def test_two_builds_of_one_output_do_not_mix(tmp_path):
    with EngineWriter(tmp_path / "e"), pytest.raises(UsageError, match="Another build"):
        EngineWriter(tmp_path / "e")
    toy_engine.build(tmp_path / "e")


def test_an_unreadable_input_file_is_a_model_error(tmp_path):
    with EngineWriter(tmp_path / "e") as w, pytest.raises(ModelError):
        w.add_file("config.json", tmp_path / "nothing")


# Resuming


def test_a_stopped_build_goes_on_and_reads_only_what_is_missing(tmp_path):
    toy_engine.build(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        toy_engine.build(tmp_path / "e", source=Counting(stop_at="w.1"))
    assert not (tmp_path / "e").exists()
    again = Counting()
    toy_engine.build(tmp_path / "e", source=again)
    assert again.read == ["k", "w.0", "w.1", "w.2"]  # the shard that was open, and nothing before it
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "whole"]


def _stop(out: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        toy_engine.build(out, source=Counting(stop_at="w.1"))
    return out.parent / f".{out.name}.build"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_stage_is_never_used(tmp_path):
    toy_engine.build(tmp_path / "whole")
    damages = [
        lambda work: _flip(work / "engine/weights/weights-00001.safetensors"),
        lambda work: (work / "engine/weights/weights-00001.safetensors").unlink(),
        lambda work: os.truncate(work / "engine/weights/weights-00002.safetensors", 100),
        lambda work: os.truncate(work / "journal", os.path.getsize(work / "journal") - 20),
        lambda work: _flip(work / "journal"),
        lambda work: (work / "journal").write_bytes(b"\xff\x00garbage"),
        lambda work: (work / "engine/stray").write_bytes(b"x"),
    ]
    for i, damage in enumerate(damages):
        out = tmp_path / f"e{i}"
        damage(_stop(out))
        toy_engine.build(out)
        assert contents(out) == contents(tmp_path / "whole"), i


def test_another_source_does_not_reuse_the_stage(tmp_path):
    _stop(tmp_path / "e")
    other = Counting(seed=1)
    toy_engine.build(tmp_path / "e", seed=1, source=other)
    assert len(other.read) == 7
    toy_engine.build(tmp_path / "fresh", seed=1)
    assert contents(tmp_path / "e") == contents(tmp_path / "fresh")


def test_changed_recipes_do_not_reuse_a_shard_of_the_same_layout(tmp_path):
    source = toy_engine.ToySource()
    shape = (toy_engine.WIDTH, toy_engine.VOCAB)
    for name in ("w.0", "w.1"):
        with EngineWriter(tmp_path / "e", fingerprint="same") as w:
            (file,) = {p.file for p in w.write_weights({"w": Source(name, shape)}, source, torch.float32).values()}
            assert torch.equal(load_file(w.stage / file)["w"], source.tensor(name))


def test_without_a_fingerprint_nothing_is_left_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), EngineWriter(tmp_path / "e") as w:
        w.write_weights(toy_engine.recipes(), Counting(stop_at="w.1"), torch.float32, 60_000)
    assert not list(tmp_path.iterdir())


def test_progress_reaches_the_total(tmp_path):
    calls: list[tuple[int, int]] = []
    with EngineWriter(tmp_path / "e") as w:
        w.write_weights(toy_engine.recipes(), toy_engine.ToySource(), torch.float32, 60_000, lambda *a: calls.append(a))
        total = sum(f.bytes for f in w.files.values())
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


def test_a_disk_known_to_be_too_small_is_refused_before_writing(tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: full)
    source = Counting()
    with pytest.raises(ResourceError, match="GB are free"):
        toy_engine.build(tmp_path / "e", source=source)
    assert not source.read
    assert not list(tmp_path.iterdir())


# A fault at every disk operation (case 53), a kill at every one (case 54)


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "force"])
def test_a_failing_disk_at_each_operation_leaves_no_bad_engine(tmp_path, replacing):
    toy_engine.build(tmp_path / "reference", seed=1)
    reference = contents(tmp_path / "reference")
    out = tmp_path / "e"

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(tmp_path / ".e.build", ignore_errors=True)
        if replacing:
            toy_engine.build(out, seed=0)

    fresh()
    old = contents(out) if replacing else None
    with at_each_operation(nothing, nothing) as count:
        toy_engine.build(out, replacing, seed=1)
    assert count[0] > 60
    failed = 0
    for i in range(count[0]):
        fresh()
        code = engine_faults.CODES[i % 2]
        try:
            with at_each_operation(failing(i, code), nothing):
                toy_engine.build(out, replacing, seed=1)
        except ResourceError as e:
            assert e.exit_code == 6
            assert os.strerror(code) in e.cause
            failed += 1
        # what is under the final name is the old engine or a whole new one
        assert (contents(out) if out.exists() else None) in (old, reference), i
        if out.exists() and contents(out) == reference:
            continue
        toy_engine.build(out, replacing, seed=1)  # the same command again
        assert contents(out) == reference, i
    # the rest are operations whose failure may not matter: cleaning up after the engine is in place
    assert failed > 0.7 * count[0], (failed, count[0])


def test_short_writes_are_continued(tmp_path, monkeypatch):
    toy_engine.build(tmp_path / "whole")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[: max(1, len(data) // 2)])))
    toy_engine.build(tmp_path / "e")
    monkeypatch.undo()
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")


def test_where_names_cannot_be_exchanged_the_old_engine_still_comes_back(tmp_path, monkeypatch):
    """Filesystems without RENAME_EXCHANGE: two renames, and a kill between them is undone by the next build."""
    monkeypatch.setattr(writer, "exchange", lambda a, b: False)
    out = tmp_path / "e"
    toy_engine.build(out, seed=0)
    old = contents(out)
    toy_engine.build(out, True, seed=1)
    assert contents(out) != old
    toy_engine.build(out, True, seed=0)
    real, calls = os.rename, [0]

    def second_fails(a, b):
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(5, "gone")
        real(a, b)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(ResourceError):
        toy_engine.build(out, True, seed=1)
    monkeypatch.setattr(os, "rename", real)
    with pytest.raises(Dsv2Error, match="exists"):
        EngineWriter(out)  # not forced: the old engine came back and counts as existing
    assert contents(out) == old


def test_kill_9_at_each_operation_and_at_20_random_moments(tmp_path):
    seen = kill(tmp_path, 20)
    assert seen["old"] + seen["new"] >= 120, seen
    assert seen["new"] >= 1


def kill(tmp_path: Path, points: int) -> dict[str, int]:
    """In its own process: it forks, and this one has threads."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.engine_faults", tmp_path / "e", str(points), "11"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    seen: dict[str, int] = json.loads(run.stdout)
    return seen


def test_the_stage_can_be_checked_before_it_is_published(tmp_path):
    with EngineWriter(tmp_path / "e") as w:
        w.write_weights(toy_engine.recipes(), toy_engine.ToySource(), torch.float32)
        for name in ("prefill.onnx", "decode.onnx"):
            w.add_bytes(name, b"x")
        sealed = w.seal(toy_engine.manifest(status="unverified"))
        integrity.verify(w.stage, sealed)
        assert not (tmp_path / "e").exists()
        assert w.finish(toy_engine.manifest()).status == "verified"
    assert integrity.read_manifest(tmp_path / "e").status == "verified"
