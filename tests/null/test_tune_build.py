"""What a build takes from tuning records, and what it says of them. No kernel is compiled."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from dsv2_compile.autotune import base
from dsv2_compile.autotune.record import MEASURED, PREDICTED, Record, launch_digest
from dsv2_compile.autotune.tasks import tasks_of
from dsv2_compile.backends.cuda.choice import Choice
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.presets import configure
from dsv2_compile.checkpoint.synth import SynthRequest, synth
from dsv2_compile.errors import UsageError
from dsv2_compile.pipeline import cuda, unchanged
from dsv2_compile.pipeline.cuda_plan import drafts_of, programs_of
from dsv2_compile.pipeline.cuda_records import configs_of, files_of, used, warnings
from dsv2_compile.progress import silent
from dsv2_compile.request import BuildRequest
from tests.tuning import H800

POSITIONS = 256
SMALL = {"num_hidden_layers": 2, "vocab_size": 320, "n_routed_experts": 8, "max_position_embeddings": POSITIONS}


@pytest.fixture(scope="module")
def compiled():
    return programs_of(configure("tiny", SMALL), H800, POSITIONS, {}, silent, check=False)


def drafts(compiled, known, batch=2):
    return drafts_of(compiled, H800, "bf16", batch, POSITIONS, silent, Choice(configs_of(known))).values()


def task_of(compiled, kernel, batch=2, **sizes):
    """The first call of ``kernel`` at ``sizes``."""
    found = tasks_of(drafts(compiled, base.Base(), batch), H800)
    return next(t for t in found if t.call.kernel == kernel and sizes.items() <= dict(t.key.sizes).items())


def record(task, provenance=PREDICTED, **config):
    changed = {**dict(task.config), **config}
    return Record(
        key=task.key,
        config=tuple(sorted(changed.items())),
        provenance=provenance,
        microseconds=3.0,
        default_microseconds=4.0,
        bound=2.0,
        launch=launch_digest(task.call, changed),
        model=1,
        device="" if provenance == PREDICTED else "a GPU",
        checks=("some",),
        trials=7,
        created=int(time.time()) - 100,
    )


def entry(entries, task):
    (found,) = [e for e in entries if e["kernel"] == task.call.kernel and e["sizes"] == dict(task.key.sizes)][:1]
    return found


@pytest.mark.parametrize("provenance", [PREDICTED, MEASURED])
def test_a_record_decides_the_configuration_and_the_manifest_says_so(compiled, provenance):
    task = task_of(compiled, "rms_norm", rows=2)
    known = base.Base()
    known.add(record(task, provenance, num_warps=16))
    made = drafts(compiled, known)
    (config,) = {
        launch.request.config
        for draft in made
        for launch in draft.launches
        if launch.request.kernel == "rms_norm" and draft.workload["rows"] == 2 and launch.request.dims == task.call.dims
    }
    assert dict(config)["num_warps"] == 16
    entries = used(made, known, H800)
    tuned = [e for e in entries if e["provenance"] == provenance]
    assert tuned and all(e["microseconds"] == 3.0 and e["tuned_at"] for e in tuned)
    assert {"device" if provenance == MEASURED else "model"} <= tuned[0].keys()
    assert any(e["provenance"] == "default" for e in entries)
    told = warnings(entries, known, H800)
    assert len(told) == (provenance == PREDICTED) and all("none of which was measured on h800" in t for t in told)


def test_measured_beats_predicted_whenever_it_was_made(compiled):
    task = task_of(compiled, "rms_norm", rows=2)
    for order in (1, -1):
        known = base.Base()
        for r in [record(task, MEASURED, num_warps=8), record(task, PREDICTED, num_warps=16)][::order]:
            known.add(r)
        assert dict(known.find(task.call, H800).config)["num_warps"] == 8


def test_a_product_that_is_split_brings_its_sum(compiled):
    task = task_of(compiled, "linear", rows=2)
    known = base.Base()
    assert dict(task.config)["SPLIT_K"] == 1
    known.add(record(task, SPLIT_K=2))
    after = tasks_of(drafts(compiled, known), H800)
    sums = [t for t in after if t.call.kernel == "split_k_sum" and dict(t.call.dims)["SPLIT_K"] == 2]
    assert sums and dict(sums[0].call.dims)["N"] == dict(task.call.dims)["N"]


@pytest.mark.parametrize("part", ["source", "triton", "ptxas"])
def test_a_stale_record_is_not_used_and_told(compiled, part):
    task = task_of(compiled, "rms_norm", rows=2)
    stale = record(task, num_warps=16)
    known = base.Base()
    known.add(replace(stale, key=replace(stale.key, **{part: "another"})))
    entries = used(drafts(compiled, known), known, H800)
    assert {e["provenance"] for e in entries} == {"default"}
    (told,) = warnings(entries, known, H800)
    assert "1 tuning records for h800 are stale" in told


def test_a_configuration_that_was_rejected_counts_as_default(compiled):
    """It did not compile here: the build took another, which the record does not vouch for."""
    task = task_of(compiled, "rms_norm", rows=2)
    known = base.Base()
    known.add(record(task, num_warps=16))
    choice = Choice(configs_of(known))
    first = drafts_of(compiled, H800, "bf16", 2, POSITIONS, silent, choice).values()
    for draft in first:
        for launch in draft.launches:
            if dict(launch.request.config)["num_warps"] == 16:
                choice.reject(launch.request)
    again = drafts_of(compiled, H800, "bf16", 2, POSITIONS, silent, choice).values()
    assert {e["provenance"] for e in used(again, known, H800)} == {"default"}


def test_sizes_up_to_twice_as_far_are_near_enough(compiled):
    task = task_of(compiled, "rms_norm", batch=8, rows=8)
    known = base.Base()
    known.add(record(task, num_warps=16))
    found = {
        rows: known.find(replace(task.call, sizes=tuple(sorted({**dict(task.call.sizes), "rows": rows}.items()))), H800)
        for rows in (1, 4, 8, 16, 32)
    }
    assert [rows for rows, r in found.items() if r] == [4, 8, 16]


def test_which_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("DSV2_CACHE_DIR", str(tmp_path))
    assert files_of("none", H800) == []
    assert files_of("auto", H800)[0] == base.SHIPPED / "h800.jsonl" and base.own_file(H800) in files_of("auto", H800)
    with pytest.raises(UsageError, match="no file of tuning records"):
        files_of(str(tmp_path / "missing"), H800)


def test_a_build_is_another_when_its_records_are(tmp_path, compiled):
    """`build --force` over its own engine must not say that nothing has changed."""
    checkpoint = tmp_path / "checkpoint"
    synth(SynthRequest(checkpoint, "tiny", SMALL))
    opened, records = Checkpoint.open(str(checkpoint)), tmp_path / "records.jsonl"
    records.touch()
    asked = BuildRequest(str(checkpoint), tmp_path / "e", backend="cuda", gpu="h800", tuning=str(records))
    before = unchanged.fingerprint(opened, asked, cuda.reads(asked))
    assert before == unchanged.fingerprint(opened, asked, cuda.reads(asked))
    base.save(records, [record(task_of(compiled, "rms_norm"))])
    assert before != unchanged.fingerprint(opened, asked, cuda.reads(asked))
