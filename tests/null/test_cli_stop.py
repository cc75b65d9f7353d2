"""Builds that are stopped: by a signal, by a full disk; what is kept, and what is said about it."""

from __future__ import annotations

import signal

from dsv2_compile.cli.main import main
from dsv2_compile.errors import ResourceError
from tests.cli_tools import LIMITS, SETTINGS, checked, cli, ended, start, wait_for


def test_a_stopped_build_goes_on(tmp_path):
    """SIGINT when the weights are written, then SIGTERM in the same command: the shard is not written again."""
    assert cli("synth", "tiny-lite", "-o", tmp_path / "c", *SETTINGS).code == 0
    out = tmp_path / "out"
    args = ("build", tmp_path / "c", "--cpu", "-o", out / "e", *LIMITS)
    shards = []
    for number, extra in ((signal.SIGINT, ()), (signal.SIGTERM, ("--json",))):
        process = start(*args, *extra)
        wait_for(process, b"float64 reference")
        process.send_signal(number)
        ran = ended(process)
        assert ran.code == 128 + number, ran.err
        assert f"stopped by {number.name}" in ran.err
        assert "the same command goes on from the finished shards" in ran.err.lower()
        (shard,) = (out / ".e.build/engine/weights").iterdir()
        shards.append((shard.stat().st_ino, shard.stat().st_mtime_ns))
        assert [p.name for p in out.iterdir()] == [".e.build"]
    assert shards[0] == shards[1]
    assert ran.answer()["resumable"] is True


def test_a_full_disk_with_finished_shards_says_that_they_are_kept(tmp_path, monkeypatch, capsys):
    def full(request, progress):
        (tmp_path / ".e.build").mkdir(exist_ok=True)
        (tmp_path / ".e.build/journal").write_text("a shard\n")
        raise ResourceError("disk full", "Free disk space.")

    monkeypatch.setattr("dsv2_compile.pipeline.build", full)
    assert main(["build", "m", "--cpu", "-o", str(tmp_path / "e")]) == 6
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"help: Free disk space. The same command goes on from the finished shards in {tmp_path / '.e.build'}."
    )
    assert main(["build", "m", "--cpu", "-o", str(tmp_path / "e"), "--json"]) == 6
    assert checked(capsys.readouterr().out)["resumable"] is True


def test_shards_of_an_older_build_are_not_promised(tmp_path, monkeypatch, capsys):
    (tmp_path / ".e.build").mkdir()
    (tmp_path / ".e.build/journal").touch()

    def stopped(request, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr("dsv2_compile.pipeline.build", stopped)
    assert main(["build", "m", "--cpu", "-o", str(tmp_path / "e"), "--json"]) == 130
    assert "resumable" not in checked(capsys.readouterr().out)
