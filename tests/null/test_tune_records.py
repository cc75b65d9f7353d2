"""Tuning records: which are used, what is refused, and that no writer, crash or neighbour spoils a file of them."""

from __future__ import annotations

import copy
import json
import os
import pwd
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import dsv2_compile
from dsv2_compile.autotune import base, lines
from dsv2_compile.autotune.base import Base, files_for, load, own_file, save, why_stale
from dsv2_compile.autotune.lock import locked
from dsv2_compile.autotune.record import Key, Record, key_of, launch_digest
from dsv2_compile.autotune.schema import check_config, newer, parse
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.cache_folder import VARIABLE, cache_folder, writable_folder
from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.errors import IntegrityError, PartialError
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call
from dsv2_compile.kernels.gpu.shapes import shapes
from dsv2_compile.targets import target
from tests.cli_tools import environment
from tests.tuning import H800, linear, norm
from tests.tuning_records import changed, record, sealed

SCHEMA = json.loads((Path(dsv2_compile.__file__).parent / "autotune" / "record.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
COMPILERS = toolchain(H800)


def of(*records):
    known = Base()
    for r in records:
        known.add(r)
    return known


# Which record is used


def test_a_record_is_used_for_its_call_and_no_other():
    found = record(linear(rows=8), config={"BLOCK_N": 32})
    known = of(found)
    assert known.find(linear(rows=8), H800) is found
    others = [linear(rows=8, N=1024), norm(rows=8), replace(linear(rows=8), dtype="fp16")]
    assert [known.find(c, H800) for c in others] == [None] * 3
    assert known.find(linear(rows=8), target("h200")) is None


@pytest.mark.parametrize("rows, expected", [(1, None), (3, 4), (4, 4), (5, 4), (8, 8), (32, 32), (64, 32), (512, None)])
def test_near_sizes_are_near_enough_and_the_larger_of_two(rows, expected):
    known = of(*(record(linear(rows=n)) for n in (4, 8, 32)))
    found = known.find(linear(rows=rows), H800)
    assert (found and dict(found.key.sizes)["rows"]) == expected


def test_of_two_as_near_the_larger_is_used():
    known = of(*(record(linear(rows=n)) for n in (8, 32)))
    assert dict(known.find(linear(rows=16), H800).key.sizes) == {"rows": 32}


def test_measured_beats_predicted_and_newer_beats_older_in_any_order():
    old, new = record(created=100), record(created=200, microseconds=99.0)
    measured, again = record(device="a card", created=50), record(device="a card", created=60, microseconds=98.0)
    for order in ((old, new, measured, again), (again, measured, new, old), (measured, new, again, old)):
        assert of(*order).find(linear(), H800) is again
    assert of(new, old).find(linear(), H800) is new


def test_what_find_said_does_not_outlive_a_better_record():
    known = of(record(created=100))
    known.find(linear(), H800)
    known.add(better := record(created=200))
    assert known.find(linear(), H800) is better


STALE = {
    "source": lambda r: changed(r, source="0" * 64),
    "triton": lambda r: changed(r, triton="3.6.0"),
    "ptxas": lambda r: changed(r, ptxas="another"),
    "launch": lambda r: replace(r, launch="0" * 16),
}
FOREIGN = {
    "kernel": lambda r: changed(r, kernel="linear_fp32"),
    "target": lambda r: changed(r, target="h200"),
    "dtype": lambda r: changed(r, dtype="fp16"),
    "dims": lambda r: changed(r, dims=tuple((n, v + 1 if n == "N" else v) for n, v in r.key.dims)),
    "dims, one less": lambda r: changed(r, dims=r.key.dims[1:]),
    "sizes": lambda r: changed(r, sizes=(("rows", 4096),)),
}


@pytest.mark.parametrize("part", STALE)
def test_a_record_of_another_build_is_stale_and_worth_another_trial(part):
    old = STALE[part](record(config={"BLOCK_N": 32}, device="a card"))
    known = of(old)
    assert known.find(linear(), H800) is None
    assert known.stale == {old.key: old}
    assert why_stale(old, COMPILERS) == (part,)
    assert known.worth_trying(linear(), H800) == [dict(old.config)]
    known.add(predicted := record())
    assert known.find(linear(), H800) is predicted


@pytest.mark.parametrize("part", FOREIGN)
def test_a_record_of_something_else_is_never_used(part):
    known = of(FOREIGN[part](record()))
    assert known.find(linear(), H800) is None
    assert known.worth_trying(linear(), H800) == []


def test_every_part_of_a_key_is_tested():
    assert {p.split(",")[0] for p in (*STALE, *FOREIGN)} == {*Key.__dataclass_fields__, "launch"}


def test_a_measured_record_whose_meaning_changed_does_not_hide_a_predicted_one():
    stale, good = record(device="a card", launch="0" * 16, created=9), record(created=1)
    for order in ((stale, good), (good, stale)):
        assert of(*order).find(linear(), H800) is good


def test_equal_hashes_are_no_equal_keys(monkeypatch):
    monkeypatch.setattr(Key, "__hash__", lambda self: 0)
    calls = [linear(rows=r, N=n) for r in (1, 64) for n in (512, 1024)]
    known = of(*(record(c) for c in calls[1:]))
    assert known.find(calls[0], H800) is None
    assert [known.find(c, H800).key for c in calls[1:]] == [record(c).key for c in calls[1:]]


def test_worth_trying_is_nearest_first_and_says_each_once():
    near, far = record(linear(rows=8), config={"BLOCK_N": 32}), record(linear(rows=16), config={"BLOCK_N": 64})
    again = changed(record(linear(rows=4), config={"BLOCK_N": 64}), source="0" * 64)
    known = of(near, far, again, record(linear(rows=512)))
    assert known.worth_trying(linear(rows=8), H800) == [dict(near.config), dict(far.config)]


def test_find_does_not_look_at_every_record():
    """The fastest of a few: others may be using the machine."""
    known = of(*(record(linear(rows=1 << r, N=512 + 16 * n)) for n in range(200) for r in (0, 4)))
    times = []
    for attempt in range(5):
        calls = [linear(rows=rows, N=16 * n + attempt) for n in range(20) for rows in (1, 300)]
        start = time.perf_counter()
        for c in calls * 50:
            known.find(c, H800)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2, times


def test_the_digest_of_a_launch_follows_from_the_key_alone():
    sizes = {"rows": 30, "batch": 32, "context": 30000, "tokens": 30, "slots": 64}
    for shape in shapes(PRESETS["lite"], rows=32):
        call = Call.of(KERNELS[shape.kernel], shape.dims, sizes, "bf16")
        config = KERNELS[call.kernel].default(shape.dims, H800)
        key = key_of(call, "h800", "t", "p")
        assert launch_digest(call, config) == launch_digest(key, config)
        other = {n: v * 2 if n == "num_warps" else v for n, v in config.items()}
        assert launch_digest(key, config) != launch_digest(key, other)


# Records as they are written


@pytest.mark.parametrize("model", ["v2", "lite", "tiny"])
def test_every_record_of_a_default_can_be_read_again_and_is_valid(model):
    sizes = {"batch": 32, "context": 1 << 20, "tokens": 64, "slots": 64}
    for gpu in ("h200", "l40s"):
        for rows in (1, 32, 8192):
            for shape in shapes(PRESETS[model], rows):
                found = record(Call.of(KERNELS[shape.kernel], shape.dims, {**sizes, "rows": rows}, "bf16"), gpu)
                value = lines.decode(lines.encode(found.to_json()))
                VALIDATOR.validate(value)
                assert parse(value) == found
                assert base.means_the_same(found)


def test_what_was_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "h800.jsonl"
    saved = [record(linear(rows=1 << r)) for r in range(6)]
    save(path, saved[:3])
    save(path, saved[3:])
    known = load([path, tmp_path / "missing.jsonl"])
    assert list(known.records.values()) == saved
    assert (known.damaged, known.refused, known.stale) == (0, [], {})
    assert not path.stat().st_mode & stat.S_IWOTH


@pytest.mark.parametrize(
    "kernel, knob, taken, refused",
    [
        ("linear", "SPLIT_K", (1, 3, 16), (0, -1, 17)),
        ("linear", "num_stages", (1, 3, 6), (0, 7)),
        ("linear", "BLOCK_N", (1, 2, 256), (0, 3, 100, 512, -16)),
        ("linear", "num_warps", (1, 8), (0, 6, 16)),
        ("mla_decode", "SWAP", (0, 1), (-1, 2)),
        ("rms_norm", "num_stages", (1,), (0, 2)),
    ],
)
def test_a_knob_has_values_that_its_kernel_can_take(kernel, knob, taken, refused):
    config = {n: values[0] for n, values in KERNELS[kernel].space.items()}
    for value in taken:
        check_config(kernel, config | {knob: value})
    for value in refused:
        with pytest.raises(ValueError, match=knob):
            check_config(kernel, config | {knob: value})


# Records that somebody else wrote


def at(*path, to):
    def change(value):
        inner = value
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = to
        return value

    return change


def without(*path):
    def change(value):
        inner = value
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        return value

    return change


OURS = {
    "huge num_warps": at("config", "num_warps", to=1 << 20),
    "block of no power of two": at("config", "BLOCK_N", to=48),
    "no block": at("config", "BLOCK_K", to=0),
    "knob that is missing": without("config", "BLOCK_K"),
    "knob of another kernel": at("config", "SWAP", to=1),
    "unknown kernel": at("key", "kernel", to="os_system"),
    "path for a kernel": at("key", "kernel", to="../../linear"),
    "path for a target": at("key", "target", to="../../../etc/passwd"),
    "target that is no GPU": at("key", "target", to="cpu"),
    "sizes of another kernel": at("key", "sizes", to={"rows": 8, "batch": 8}),
    "no sizes": at("key", "sizes", to={}),
    "whole number written as a fraction": at("config", "num_warps", to=4.0),
}
"""Refused for what only this version's kernels and targets are, or, the last one, for what JSON Schema cannot tell."""
HOSTILE = {
    "negative block": at("config", "BLOCK_M", to=-16),
    "1e308 microseconds": at("microseconds", to=1e308),
    "no time": at("microseconds", to=0.0),
    "a time below zero": at("default_microseconds", to=-5.0),
    "a time as text": at("microseconds", to="12.5"),
    "true for a time": at("microseconds", to=True),
    "bound below zero": at("bound", to=-1.0),
    "true for a knob": at("config", "num_warps", to=True),
    "text for a knob": at("config", "num_warps", to="4"),
    "list for a knob": at("config", "num_warps", to=[4]),
    "null for a knob": at("config", "num_warps", to=None),
    "4000 digits for a knob": at("config", "num_warps", to=10**4000),
    "list for the configuration": at("config", to=[1, 2]),
    "100 knobs": at("config", to={f"K{i}": 1 for i in range(100)}),
    "knob with a name that is none": at("config", "../x", to=1),
    "deep nesting": at("config", to=json.loads("[" * 500 + "]" * 500)),
    "unknown field": at("run", to="rm -rf /"),
    "field that is missing": without("launch"),
    "unknown field of the key": at("key", "more", to=1),
    "no key": at("key", to=None),
    "dim of 1e308": at("key", "dims", "N", to=1e308),
    "dim as text": at("key", "dims", "N", to="512"),
    "dim of a path": at("key", "dims", "../N", to=1),
    "size of no power of two": at("key", "sizes", "rows", to=3),
    "size of 2**50": at("key", "sizes", "rows", to=1 << 50),
    "true for a size": at("key", "sizes", "rows", to=True),
    "unknown dtype": at("key", "dtype", to="int4"),
    "source of 10000 letters": at("key", "source", to="a" * 10000),
    "no source": at("key", "source", to=""),
    "control characters": at("device", to="\x1b[2J"),
    "new line in a text": at("key", "triton", to="3.7.1\n"),
    "measured nowhere": at("provenance", to="measured"),
    "predicted on a device": at("device", to="a card"),
    "unknown provenance": at("provenance", to="guessed"),
    "another format": at("schema", to="dsv2/trial/1"),
    "a later version": at("schema", to="dsv2/tuning/2"),
    "no schema": without("schema"),
    "10000 checks": at("checks", to=["x"] * 10000),
    "half a surrogate": at("checks", to=["\ud800"]),
    "a check that is no text": at("checks", to=[1]),
    "made before 1970": at("created", to=-1),
    "made in 2**60": at("created", to=1 << 60),
    "trials with a fraction": at("trials", to=1.5),
}
BODY = json.dumps(record().to_json(), sort_keys=True, separators=(",", ":"))
RAW = {
    "key that stands twice": sealed(BODY[:-1] + ',"trials":8}'),
    "knob that stands twice": sealed(BODY.replace('"num_warps"', '"num_warps":8,"num_warps"')),
    "NaN": sealed(BODY.replace("12.5", "NaN")),
    "Infinity": sealed(BODY.replace("12.5", "Infinity")),
    "1e999": sealed(BODY.replace("12.5", "1e999")),
    "100000 digits": sealed(BODY.replace('"trials":7', '"trials":' + "7" * 100_000)),
    "60000 digits": sealed(BODY.replace('"trials":7', '"trials":' + "7" * 60_000)),
    "30000 levels": sealed(BODY.replace('"trials":7', '"trials":' + "[" * 30_000 + "]" * 30_000)),
    "100000 levels": sealed(BODY.replace('"trials":7', '"trials":' + "[" * 100_000 + "]" * 100_000)),
    "a line of 10 MB": sealed(BODY.replace("none", "n" * 10_000_000)),
    "other spelling": sealed(BODY.replace(",", ", ")),
    "other order": sealed(json.dumps(dict(reversed(json.loads(BODY).items())), separators=(",", ":"))),
    "no seal": BODY.encode() + b"\n",
    "seal of another line": lines.encode(record().to_json()).replace(b'"trials":7', b'"trials":8'),
    "a list": b"[1,2]\n",
    "a number": b"1\n",
    "no UTF-8": b"\xff\xfe{}\n",
    "zeros": b"\0" * 5000 + b"\n",
    "another end of the line": lines.encode(record().to_json())[:-1] + b"\r\n",
}


def mutated(change):
    return change(copy.deepcopy(record().to_json()))


@pytest.mark.parametrize("name", [*OURS, *HOSTILE])
def test_a_hostile_record_is_refused(name):
    value = mutated((OURS | HOSTILE)[name])
    assert isinstance(parse(value), str)
    assert len(parse(value)) < 200
    assert VALIDATOR.is_valid(value) == (name in OURS)


def test_what_is_changed_is_otherwise_sound():
    value = record().to_json()
    assert VALIDATOR.is_valid(value)
    assert parse(value) == record()
    assert lines.decode(sealed(BODY)) == value


@pytest.mark.parametrize("name", [*OURS, *HOSTILE, *RAW])
def test_neighbours_of_a_hostile_line_are_used_and_it_costs_little(name, tmp_path):
    good = [record(linear(rows=1)), record(linear(rows=64))]
    line = RAW.get(name)
    if line is None:
        line = lines.encode(mutated((OURS | HOSTILE)[name]))
    path = tmp_path / "f.jsonl"
    path.write_bytes(lines.encode(good[0].to_json()) + line + lines.encode(good[1].to_json()))
    tracemalloc.start()
    start = time.perf_counter()
    known = load([path])
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(known.records.values()) == good
    assert (known.damaged, len(known.refused)) == ((1, 0) if name in RAW else (0, 1))
    assert known.stale == {}
    assert seconds < 2
    assert peak < 4 << 20


def test_a_record_with_dims_that_its_kernel_does_not_have_is_never_used():
    for dims in ((), (("K", 0), ("N", 0)), (("K", -1), ("N", 1 << 40)), (("K", 1e-300), ("N", 1e12))):
        value = changed(record(), dims=dims).to_json()
        known = of(parse(value))
        assert known.records == {}
        assert len(known.stale) == 1


@pytest.mark.parametrize("schema, later", [("dsv2/tuning/2", True), ("dsv2/tuning/10", True)])
def test_later_versions_are_known_as_such(schema, later):
    assert newer({"schema": schema}) is later


@pytest.mark.parametrize("schema", ["dsv2/tuning/1", "dsv2/tuning/0", "dsv2/tuning/-2", "dsv2/trial/2", 2, None, ["x"]])
def test_nothing_else_is_a_later_version(schema):
    assert not newer({"schema": schema})


# Damage


@pytest.fixture
def twenty(tmp_path):
    path = tmp_path / "f.jsonl"
    save(path, [record(linear(rows=1 << (i % 10), N=512 << (i // 10))) for i in range(20)])
    return path


def test_a_thousand_flipped_bits_give_no_wrong_record(twenty):
    data = twenty.read_bytes()
    whole = data.split(b"\n")[:-1]
    sound = {line: lines.decode(line) for line in whole}
    starts = [0]
    for line in whole:
        starts.append(starts[-1] + len(line) + 1)
    rng = random.Random(0)
    for _ in range(1000):
        at = rng.randrange(len(data))
        torn = bytearray(data)
        torn[at] ^= 1 << rng.randrange(8)
        twenty.write_bytes(torn)
        found = lines.read(twenty)
        hit = next(i for i in range(20) if at < starts[i + 1])
        lost = {hit, hit + 1} if at == starts[hit + 1] - 1 else {hit}
        assert list(found.objects) == [sound[line] for i, line in enumerate(whole) if i not in lost]
        assert found.damaged


def test_a_line_torn_anywhere_is_one_line_lost(twenty):
    data = twenty.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    new = record(linear(rows=4096))
    for cut in {*range(last + 1, len(data) - 1, 17), len(data) - 2}:
        twenty.write_bytes(data[:cut])
        known = load([twenty])
        assert (len(known.records), known.damaged) == (19, 1)
        save(twenty, [new])
        known = load([twenty])
        assert (len(known.records), known.damaged) == (20, 1)
        assert known.records[new.key] == new


def test_a_missing_end_of_the_last_line_loses_nothing(twenty):
    twenty.write_bytes(twenty.read_bytes()[:-1])
    assert len(load([twenty]).records) == 20
    save(twenty, [record(linear(rows=4096))])
    assert len(load([twenty]).records) == 21


@pytest.mark.parametrize("zeros", [1, 4096, 150 << 20])
def test_a_tail_of_zeros_is_one_line_lost(zeros, twenty):
    os.truncate(twenty, twenty.stat().st_size + zeros)
    known = load([twenty])
    assert (len(known.records), known.damaged) == (20, 1)


def test_a_file_beyond_all_measure_is_not_read(tmp_path):
    path = tmp_path / "f.jsonl"
    path.touch()
    os.truncate(path, base.MOST_BYTES + 1)
    with pytest.raises(IntegrityError, match="larger than any"):
        load([path])


def test_a_write_that_fails_leaves_the_file_as_it_was(twenty, monkeypatch):
    before = twenty.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lines.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(twenty, [record(linear(rows=4096))])
    assert twenty.read_bytes() == before


def test_a_file_that_cannot_be_read_is_warned_of(tmp_path):
    folder = tmp_path / "f.jsonl"
    folder.mkdir()
    with pytest.warns(UserWarning, match="are not used: Is a directory"):
        assert load([folder]).records == {}


# Several at once

WRITER = """
import json, sys
from pathlib import Path
from dsv2_compile.autotune import lines
path, number, value = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.stdin.read())
for start in range(0, 1000, 250):
    lines.append(path, [{**value, "created": 1000 * number + start + i} for i in range(250)])
"""


def child(code, *args, **kwargs):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=environment(), text=True, stderr=subprocess.PIPE, **kwargs)


def test_32_writers_of_1000_records_lose_none(tmp_path):
    path = tmp_path / "f.jsonl"
    value = json.dumps(record().to_json())
    writers = [child(WRITER, path, n, stdin=subprocess.PIPE) for n in range(32)]
    for w in writers:
        w.stdin.write(value)
        w.stdin.close()
    for w in writers:
        assert w.stderr.read() == ""
        assert w.wait(60) == 0
    found = lines.read(path)
    assert found.damaged == ()
    assert sorted(v["created"] for v in found.objects) == list(range(32_000))
    assert all(isinstance(parse(v), Record) for v in found.objects[::97])


HOLDER = """
import sys, time
from pathlib import Path
from dsv2_compile.autotune.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A file whose lock another process holds, and that process."""
    path = tmp_path / "f.jsonl"
    holder = child(HOLDER, path, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    yield path, holder
    holder.kill()
    holder.communicate()


def test_the_lock_of_a_killed_process_is_free_and_its_owner_was_told(held):
    path, holder = held
    told = []

    def hear(owner):
        told.append(owner)
        holder.send_signal(signal.SIGKILL)

    start = time.monotonic()
    save(path, [record()], hear)
    assert 0.9 < time.monotonic() - start < 30
    assert told == [f"process {holder.pid} on {os.uname().nodename}"]
    assert len(load([path]).records) == 1


def test_who_does_not_wait_is_told_who_writes(held):
    path, holder = held
    start = time.monotonic()
    with pytest.raises(PartialError, match=f"written by process {holder.pid} on") as e:
        save(path, [record()], wait=False)
    assert e.value.exit_code == 7
    assert time.monotonic() - start < 1
    assert not path.exists()


@pytest.mark.parametrize("owner", ["process 999999999 on {host}", "process {pid} on {host}", "process 1 on elsewhere"])
def test_a_lock_file_that_was_left_holds_nobody_up(owner, tmp_path):
    """Of a process that is dead, whose number another has now, or of another machine."""
    path = tmp_path / "f.jsonl"
    path.with_name("f.jsonl.lock").write_text(owner.format(pid=os.getpid(), host=os.uname().nodename))
    told = []
    save(path, [record()], told.append, wait=False)
    assert told == []
    assert len(load([path]).records) == 1
    assert path.with_name("f.jsonl.lock").read_text() == ""


def test_a_child_does_not_keep_the_lock(tmp_path):
    path = tmp_path / "f.jsonl"
    with locked(path):
        pid = os.fork()
        if not pid:
            time.sleep(30)
            os._exit(0)
    try:
        save(path, [record()], wait=False)
        assert len(load([path]).records) == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_where_there_are_no_locks_it_is_warned_and_written(tmp_path, monkeypatch):
    def none(f, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(UserWarning, match="has no locks"):
        save(tmp_path / "f.jsonl", [record()])
    assert len(load([tmp_path / "f.jsonl"]).records) == 1


# Folders


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder and a temporary folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(base, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "cache"


def test_a_missing_folder_is_made_and_others_cannot_write_it(cache):
    before = os.umask(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = own_file(H800)
            save(path, [record()])
    finally:
        os.umask(before)
    assert path == cache / "tuning" / "h800.jsonl"
    for made in (cache, path.parent, *path.parent.iterdir()):
        assert not made.stat().st_mode & stat.S_IWOTH
    assert load(files_for(H800)).find(linear(), H800) == record()


def unusable(tmp_path):
    (tmp_path / "file").touch()
    yield "a file is in the way", tmp_path / "file" / "cache"
    yield "not even root can write", Path("/proc/cache")
    if os.geteuid():
        (tmp_path / "kept").mkdir(mode=0o500)
        yield "read-only", tmp_path / "kept"


def test_a_folder_that_cannot_be_written_is_warned_of_once_and_replaced(cache, tmp_path, monkeypatch):
    for _, folder in unusable(tmp_path):
        monkeypatch.setenv(VARIABLE, str(folder))
        with pytest.warns(UserWarning) as told:
            for _ in range(3):
                save(own_file(H800), [record()])
        assert len(told) == 1
        assert f"{folder}/tuning cannot be written" in str(told[0].message)
        assert own_file(H800).is_relative_to(tmp_path / "tmp")
        assert load(files_for(H800)).find(linear(), H800) == record()


def test_records_of_a_read_only_folder_are_used_without_a_warning(cache, monkeypatch):
    save(own_file(H800), [record()])

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        assert load(files_for(H800)).find(linear(), H800) == record()
    with pytest.warns(UserWarning, match="Read-only file system"):
        save(own_file(H800), [record(linear(rows=64))])
    assert len(load(files_for(H800)).records) == 2


def test_a_user_without_a_home_and_a_name_has_a_folder(cache, monkeypatch):
    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_folder("x").is_relative_to(cache.parent / "tmp")
    save(own_file(H800), [record()])
    assert load(files_for(H800)).find(linear(), H800) == record()


def give_away(path, monkeypatch):
    """Make ``path`` another user's."""
    if os.geteuid() == 0:
        os.chown(path, 54321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)


@pytest.mark.parametrize("what", ["folder", "file", "root"])
@pytest.mark.parametrize("how", ["world-writable", "another user's"])
def test_what_others_can_write_is_refused(what, how, cache, monkeypatch):
    save(own_file(H800), [record()])
    path = {"folder": cache / "tuning", "file": cache / "tuning/h800.jsonl", "root": cache}[what]
    if how == "world-writable":
        path.chmod(0o777)
    else:
        give_away(path, monkeypatch)
    for use in (files_for, own_file):
        with pytest.raises(IntegrityError, match="cannot be trusted") as e:
            use(H800)
        assert e.value.exit_code == 8
        assert str(cache) in e.value.cause
        assert VARIABLE in e.value.remedy


def test_the_folder_instead_is_refused_too_if_others_made_it(cache, monkeypatch):
    monkeypatch.setenv(VARIABLE, "/proc/cache")
    planted = cache.parent / "tmp" / f"dsv2-compile-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.warns(UserWarning), pytest.raises(IntegrityError, match="all users may write"):
        writable_folder("tuning")


def test_a_folder_that_others_made_in_the_temporary_one_stops_nobody(cache):
    planted = cache.parent / "tmp" / f"dsv2-compile-{os.getuid()}"
    save(planted / "tuning" / "h800.jsonl", [record(created=1 << 33)])
    planted.chmod(0o777)
    save(own_file(H800), [record()])
    assert list(load(files_for(H800)).records.values()) == [record()]
    planted.chmod(0o755)
    assert load(files_for(H800)).find(linear(), H800).created == 1 << 33


def test_a_shared_temporary_folder_will_do(cache):
    cache.mkdir()
    cache.chmod(0o1777)
    save(own_file(H800), [record()])
    assert len(load(files_for(H800)).records) == 1


def test_shipped_records_are_read_before_the_users(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "SHIPPED", tmp_path)
    save(tmp_path / "h800.jsonl", [record(created=5), record(linear(rows=512))])
    save(own_file(H800), [record(created=6, microseconds=7.0)])
    known = load(files_for(H800))
    assert known.find(linear(), H800).microseconds == 7.0
    assert known.find(linear(rows=512), H800) is not None
