"""`tune db`: what a user sees of files of tuning records, and that no command loses any of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dsv2_compile.autotune import base, database, lines
from dsv2_compile.autotune.base import load, own_file, save
from dsv2_compile.cache_folder import VARIABLE
from dsv2_compile.cli.main import main
from dsv2_compile.targets import target
from tests.cli_tools import checked, cli, environment
from tests.tuning import H800, linear, norm
from tests.tuning_records import changed, record

LATER = {"schema": "dsv2/tuning/2", "whatever": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No records but those of the test."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(base, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "cache"


@pytest.fixture
def run(capsys):
    """Run ``tune db ...``: exit code, standard output and error."""

    def run(*words):
        code = main(["tune", "db", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def answer(run):
    """The same with --json: exit code and the object."""

    def answer(*words):
        code, out, _ = run(*words, "--json")
        value = checked(out)
        assert value["exit"] == code
        return code, value

    return answer


def write(path, *records):
    path.unlink(missing_ok=True)
    save(path, records)
    return path


def raw(path, *more):
    with open(path, "ab") as f:
        f.writelines(more)
    return path


def in_file(path):
    return list(load([path]).records.values())


# list


def test_list_shows_the_best_of_every_key_and_what_is_stale(run, tmp_path):
    now = int(time.time())
    save(tmp_path / "shipped/h800.jsonl", [record(), record(norm(), created=now - 3 * 86400)])
    save(own_file(H800), [record(device="NVIDIA H800", microseconds=10.0, created=now - 7200)])
    save(own_file(target("h200")), [changed(record(gpu="h200"), source="0" * 64, triton="3.6.0")])
    code, out, err = run("list")
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split()[:3] == ["gpu", "kernel", "sizes"]
    assert len(rows) == 3
    h200, mine, shipped = rows
    assert "source, triton" in h200
    assert h200.startswith("h200")
    for text in ("linear ", "rows=8", "BLOCK_N=", " 10.0 ", "50%", "measured on NVIDIA H800", "2 h", "N=512", "bf16"):
        assert text in mine
    assert "rms_norm" in shipped
    assert "predicted" in shipped
    assert "3 d" in shipped
    assert "3 records, 1 of them stale, in 3 files" in err


def test_list_filters_and_gives_whole_records(answer):
    mine = [record(), record(norm())]
    save(own_file(H800), mine)
    save(own_file(target("h200")), [record(gpu="h200")])
    found = {}
    for options in ((), ("--gpu", "h800"), ("--kernel", "linear"), ("--gpu", "h200", "--kernel", "rms_norm")):
        code, value = answer("list", *options)
        assert code == 0
        found[options] = [(r["key"]["target"], r["key"]["kernel"]) for r in value["records"]]
    h200, linear_, norm_ = ("h200", "linear"), ("h800", "linear"), ("h800", "rms_norm")
    assert list(found.values()) == [[h200, linear_, norm_], [linear_, norm_], [h200, linear_], []]
    shown = answer("list", own_file(H800))[1]["records"]
    extra = {"file": str(own_file(H800)), "stale": []}
    assert shown == [json.loads(json.dumps(r.to_json())) | extra for r in database.ordered(mine)]


def test_list_warns_of_what_it_leaves_out(run):
    raw(write(own_file(H800), record()), b"torn\n", lines.encode(LATER), lines.encode({"schema": "x"}))
    code, _, err = run("list")
    assert code == 0
    assert "1 damaged, 1 refused, 1 newer lines were left out" in err


REFUSED = {
    "list --gpu cpu": "is no GPU",
    "list --gpu h8": "unknown target",
    "list --kernel conv": "unknown kernel",
    "list nowhere": "not a file",
    "validate nowhere": "not a file",
    "validate": "required: FILE",
    "merge nowhere": "not a file",
    "gc nowhere": "not a file",
    "export": "required: -o",
    "export -o x.jsonl": "no records",
    "frobnicate": "invalid choice",
    "": "required: COMMAND",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_with_cause_and_remedy(words, run, answer):
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    error, remedy = err.splitlines()
    assert error.startswith("error: ")
    assert REFUSED[words] in error
    assert remedy.startswith("help: ")
    assert answer(*words.split())[1]["error"]["code"] == "UsageError"


def test_the_command_is_found_from_the_shell(tmp_path):
    save(tmp_path / "f.jsonl", [record()])
    ran = cli("tune", "db", "list", tmp_path / "f.jsonl", "--json")
    assert ran.code == 0
    assert len(ran.answer()["records"]) == 1


# merge


def test_merge_takes_what_is_better_and_keeps_the_rest(answer, tmp_path):
    rows = [linear(rows=1 << r) for r in range(4)]
    mine = [record(rows[0], created=100), record(rows[1], device="mine", created=100), record(rows[2], created=100)]
    into = write(tmp_path / "into.jsonl", *mine)
    before = into.read_bytes()
    theirs = [
        record(rows[0], device="theirs", created=50),  # measured beats predicted
        record(rows[1], created=999),  # predicted does not
        record(rows[2], created=99),  # nor the older
        record(rows[3], created=1),  # not known
        record(norm(), launch="0" * 16),  # means something else here
    ]
    code, value = answer("merge", write(tmp_path / "a.jsonl", *theirs), "--into", into)
    assert code == 0
    counts = {"added": 1, "better": 1, "known": 2, "stale": 1}
    assert value["merged"] == [{"file": str(into), **counts}]
    assert into.read_bytes().startswith(before)
    assert set(in_file(into)) == {theirs[0], mine[1], mine[2], theirs[3]}
    after = into.read_bytes()
    code, value = answer("merge", tmp_path / "a.jsonl", "--into", into)
    assert (value["merged"][0]["added"], value["merged"][0]["better"]) == (0, 0)
    assert into.read_bytes() == after


def test_merge_of_several_does_not_depend_on_their_order(run, tmp_path):
    files = [
        write(tmp_path / "a.jsonl", record(created=5), record(norm(), created=1)),
        write(tmp_path / "b.jsonl", record(created=6), record(norm(), device="x", created=0)),
    ]
    for order, into in ((files, tmp_path / "ab.jsonl"), (files[::-1], tmp_path / "ba.jsonl")):
        assert run("merge", *order, "--into", into)[0] == 0
    assert (tmp_path / "ab.jsonl").read_bytes() == (tmp_path / "ba.jsonl").read_bytes()
    assert {r.created for r in in_file(tmp_path / "ab.jsonl")} == {6, 0}


def test_merge_goes_to_the_users_file_of_each_target(run, tmp_path):
    theirs = write(tmp_path / "a.jsonl", record(), record(gpu="h200"))
    assert run("merge", theirs)[0] == 0
    assert in_file(own_file(H800)) == [record()]
    assert in_file(own_file(target("h200"))) == [record(gpu="h200")]


def test_merge_believes_nothing_that_is_damaged_hostile_or_from_the_future(run, tmp_path):
    theirs = write(tmp_path / "a.jsonl", record(), record(norm(), created=int(time.time()) + 3 * 86400))
    hostile = record(linear(rows=64)).to_json()
    hostile["config"]["num_warps"] = 1 << 20
    raw(theirs, lines.encode(hostile), lines.encode(record(linear(rows=512)).to_json()).replace(b"1", b"2"))
    code, out, err = run("merge", theirs, "--into", tmp_path / "into.jsonl")
    assert code == 0
    assert "1 added, 0 better" in out
    assert "1 damaged, 2 refused lines were left out" in err
    assert in_file(tmp_path / "into.jsonl") == [record()]


@pytest.mark.parametrize("side", ["theirs", "mine"])
def test_merge_leaves_later_versions_alone(side, answer, tmp_path):
    theirs, into = write(tmp_path / "a.jsonl", record()), write(tmp_path / "into.jsonl", record(norm()))
    raw(theirs if side == "theirs" else into, lines.encode(LATER))
    before = into.read_bytes()
    code, value = answer("merge", theirs, "--into", into)
    assert code == 5
    assert value["error"]["code"] == "IncompatibleError"
    assert len(value["error"]["problems"]) == 1
    assert into.read_bytes() == before


def test_merge_keeps_damaged_lines_where_they_are(run, tmp_path):
    into = raw(write(tmp_path / "into.jsonl", record()), b"x" * 200_000)
    before = into.read_bytes()
    assert run("merge", write(tmp_path / "a.jsonl", record(norm())), "--into", into)[0] == 0
    assert into.read_bytes().startswith(before + b"\n")
    assert set(in_file(into)) == {record(), record(norm())}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_merge_that_fails_leaves_the_old_file_whole(step, answer, tmp_path, monkeypatch):
    into = write(tmp_path / "into.jsonl", record())
    theirs, before = write(tmp_path / "a.jsonl", record(norm())), into.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lines.os, step, full)
    code, value = answer("merge", theirs, "--into", into)
    monkeypatch.undo()
    assert code == 6
    assert value["error"]["code"] == "ResourceError"
    assert into.read_bytes() == before
    assert {p.name for p in tmp_path.glob("*into*")} | {p.name for p in tmp_path.glob(".*")} == {
        "into.jsonl",
        "into.jsonl.lock",
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from dsv2_compile.autotune import database, lines
lines.os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL)
{call}
"""


@pytest.mark.parametrize(
    "call", ["database.merge([Path(sys.argv[1])], Path(sys.argv[2]))", "database.collect(Path(sys.argv[2]))"]
)
def test_a_command_that_is_killed_leaves_the_old_file_whole(call, run, tmp_path):
    into = write(tmp_path / "into.jsonl", record(created=1), record(created=2))
    theirs, before = write(tmp_path / "a.jsonl", record(norm())), into.read_bytes()
    command = [sys.executable, "-c", KILLED.format(call=call), str(theirs), str(into)]
    assert subprocess.run(command, env=environment()).returncode == -signal.SIGKILL
    assert into.read_bytes() == before
    assert len(list(tmp_path.glob(".into.jsonl.*"))) == 1
    assert run("gc", into)[0] == 0
    assert list(tmp_path.glob(".into.jsonl.*")) == []
    assert in_file(into) == [record(created=2)]


def test_merge_into_a_folder_that_is_not_there(run, tmp_path):
    code, _, err = run("merge", write(tmp_path / "a.jsonl", record()), "--into", tmp_path / "no/into.jsonl")
    assert code == 2
    assert "not a folder that can be written" in err


# validate


@pytest.mark.parametrize(
    "more, code, kind",
    [
        ([], 0, None),
        ([lines.encode({"schema": "dsv2/tuning/1"})], 3, "ModelError"),
        ([lines.encode(LATER)], 5, "IncompatibleError"),
        ([lines.encode(LATER), lines.encode({"schema": "dsv2/tuning/1"})], 5, "IncompatibleError"),
        ([b"torn"], 8, "IntegrityError"),
        ([b"torn\n", lines.encode(LATER), lines.encode({"schema": ""})], 8, "IntegrityError"),
    ],
)
def test_validate_says_what_is_wrong_by_its_exit_code(more, code, kind, answer, tmp_path):
    path = raw(write(tmp_path / "f.jsonl", record(), changed(record(), source="0" * 64)), *more)
    before = path.read_bytes()
    found, value = answer("validate", path)
    assert found == code
    assert value.get("error", {}).get("code") == kind
    (file,) = value["files"]
    assert (file["records"], file["stale"]) == (2, 1)
    assert len(file["damaged"]) + len(file["refused"]) + len(file["newer"]) == len(more)
    assert len(value.get("error", {}).get("problems", [])) == len(more)
    assert path.read_bytes() == before


def test_validate_names_lines_and_reasons(run, tmp_path):
    wrong = record().to_json() | {"microseconds": 1e308}
    path = raw(write(tmp_path / "f.jsonl", record()), b"\n", lines.encode(wrong), b"\x1b[2J\n")
    code, out, err = run("validate", path)
    assert code == 8
    assert out.splitlines()[1].split() == [str(path), "1", "0", "1", "1", "0"]
    assert f"{path}: line 3: a time is missing or out of bounds" in err
    assert f"{path}: line 4 is not what was written" in err
    assert "\x1b" not in out + err


# export


def test_what_was_exported_is_what_a_build_would_use(run, answer, tmp_path):
    save(tmp_path / "shipped/h800.jsonl", [record(), record(norm())])
    best = record(device="a card", created=3)
    save(own_file(H800), [record(linear(rows=512), launch="0" * 16), best, changed(record(norm()), ptxas="old")])
    out = tmp_path / "out.jsonl"
    code, told, _ = run("export", "-o", out)
    assert (code, told) == (0, f"{out}\n")
    assert set(in_file(out)) == {best, record(norm())}
    assert run("validate", out)[0] == 0
    code, value = answer("export", "--kernel", "linear", "--gpu", "h800", "-o", tmp_path / "linear.jsonl")
    assert value["records"] == 1
    assert in_file(tmp_path / "linear.jsonl") == [best]


def test_export_replaces_nothing(run, tmp_path):
    save(own_file(H800), [record()])
    (tmp_path / "out").write_text("mine")
    code, _, err = run("export", "-o", tmp_path / "out")
    assert code == 2
    assert "is there already" in err
    assert (tmp_path / "out").read_text() == "mine"


# gc

STALE = {
    "source": changed(record(norm()), source="0" * 64),
    "triton": changed(record(norm()), triton="3.6.0"),
    "ptxas": changed(record(norm()), ptxas="old"),
    "launch": replace(record(norm()), launch="0" * 16),
}


def test_gc_keeps_the_best_and_moves_damage_aside(answer, tmp_path):
    path = write(tmp_path / "f.jsonl", record(created=1), *STALE.values(), record(created=2), record(linear(rows=64)))
    hostile = lines.encode(record().to_json() | {"trials": -1})
    damage = [b"torn\n", hostile, b"z" * 100_000 + b"\n", b"\0\0\0"]
    raw(path, *damage)
    before = path.read_bytes()
    aside = tmp_path / "f.jsonl.damaged"
    expected = {
        "file": str(path),
        "kept": 2,
        "dropped": {"superseded": 1, **{f"stale: {part}": 1 for part in STALE}},
        "aside": str(aside),
        "moved": 4,
    }
    code, value = answer("gc", path, "--dry-run")
    assert (code, value["dry_run"], value["files"]) == (0, True, [expected])
    assert path.read_bytes() == before
    assert not aside.exists()
    code, value = answer("gc", path)
    assert (code, value["dry_run"], value["files"]) == (0, False, [expected])
    assert path.read_bytes() == b"".join(
        lines.encode(r.to_json()) for r in (record(created=2), record(linear(rows=64)))
    )
    assert aside.read_bytes() == b"".join(damage)
    after = path.stat()
    code, value = answer("gc", path)
    assert (value["files"][0]["kept"], value["files"][0]["dropped"], value["files"][0]["moved"]) == (2, {}, 0)
    assert path.stat().st_mtime_ns == after.st_mtime_ns
    assert path.stat().st_ino == after.st_ino


def test_gc_says_what_it_does(run, tmp_path):
    path = raw(write(tmp_path / "f.jsonl", record(created=1), record(created=2), STALE["source"]), b"torn\n")
    code, out, _ = run("gc", path, "--dry-run")
    assert code == 0
    assert out.splitlines() == [
        f"{path}: 1 would be kept, 2 would be dropped",
        "  1 stale: source",
        "  1 superseded",
        f"  1 lines would be moved to {path}.damaged",
    ]


def test_gc_goes_over_all_files_of_the_user(answer, tmp_path):
    save(tmp_path / "shipped/h800.jsonl", [record(created=1), record(created=2)])
    for gpu in ("h800", "h200"):
        save(own_file(target(gpu)), [record(gpu=gpu, created=1), record(gpu=gpu, created=2)])
    shipped = (tmp_path / "shipped/h800.jsonl").read_bytes()
    code, value = answer("gc")
    assert code == 0
    assert {(Path(f["file"]).name, f["kept"]) for f in value["files"]} == {("h800.jsonl", 1), ("h200.jsonl", 1)}
    assert (tmp_path / "shipped/h800.jsonl").read_bytes() == shipped


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_gc_leaves_later_versions_alone(options, answer, tmp_path):
    path = raw(write(tmp_path / "f.jsonl", record(created=1), record(created=2)), lines.encode(LATER), b"torn\n")
    before = path.read_bytes()
    code, value = answer("gc", path, *options)
    assert code == 5
    assert value["error"]["problems"] == [f"{path}: line 3"]
    assert path.read_bytes() == before
    assert not (tmp_path / "f.jsonl.damaged").exists()


def test_gc_keeps_the_mode_of_a_file_and_follows_links(run, tmp_path):
    path = write(tmp_path / "f.jsonl", record(created=1), record(created=2))
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    assert run("gc", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(path.read_bytes().splitlines()) == 1


# Several at once

HOLDER = """
import sys, time
from pathlib import Path
from dsv2_compile.autotune.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("words", ["gc {f}", "merge {a} --into {f}"])
def test_a_command_waits_for_a_writer_and_names_it(words, run, answer, tmp_path):
    names = {"f": write(tmp_path / "f.jsonl", record()), "a": write(tmp_path / "a.jsonl", record(norm()))}
    command = [sys.executable, "-c", HOLDER, str(names["f"]), "3"]
    holder = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    owner = f"process {holder.pid} on {os.uname().nodename}"
    code, value = answer(*words.format(**names).split(), "--no-wait")
    assert code == 7
    assert f"is being written by {owner}" in value["error"]["cause"]
    code, _, err = run(*words.format(**names).split())
    assert code == 0
    assert f"waiting for {owner}, which is writing the records" in err
    assert holder.wait(30) == 0
    holder.stdout.close()


WRITER = """
import json, sys
from pathlib import Path
from dsv2_compile.autotune import lines
for value in json.loads(sys.stdin.read()):
    lines.append(Path(sys.argv[1]), [value])
"""


def test_commands_beside_writers_lose_no_record(tmp_path):
    path, other = tmp_path / "f.jsonl", write(tmp_path / "other.jsonl", record(norm()))
    calls = [linear(rows=1 << (n % 8), N=512 + 16 * (n // 8)) for n in range(120)]
    records = [record(c) for c in calls]
    writers = []
    for n in range(3):
        w = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], env=environment(), text=True, stdin=subprocess.PIPE
        )
        w.stdin.write(json.dumps([r.to_json() for r in records[n::3]]))
        w.stdin.close()
        writers.append(w)
    rounds = 0
    while any(w.poll() is None for w in writers):
        database.merge([other], path)
        database.collect(path)
        rounds += 1
    assert [w.returncode for w in writers] == [0, 0, 0]
    assert rounds > 1
    assert {r.key for r in in_file(path)} == {r.key for r in [*records, record(norm())]}
