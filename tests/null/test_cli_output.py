"""How the command line shows things: numbers, tables, progress on a terminal and elsewhere, hostile names, warnings."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import warnings
from pathlib import Path

import pytest

from dsv2_compile.cli.format import duration, printable, scaled, size, table
from dsv2_compile.cli.main import main
from dsv2_compile.cli.output import Console, plain
from dsv2_compile.cli.progress import Progress
from dsv2_compile.errors import ModelError
from tests import toy_engine
from tests.cli_tools import SETTINGS, checked, cli, command_line, environment


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (7, "7 B"), (999, "999 B"), (999.6, "1.00 kB"), (1234, "1.23 kB"), (12345, "12.3 kB"),
        (123456, "123 kB"), (999_999, "1.00 MB"), (5 << 30, "5.37 GB"), (472e9, "472 GB"), (3.2e15, "3.2 PB"),
    ],
)  # fmt: skip
def test_sizes(value, text):
    assert size(value) == text


def test_other_units():
    assert scaled(4.39e9, "FLOP") == "4.39 GFLOP"
    assert scaled(5_890_000, " parameters") == "5.89 M parameters"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59, "59 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_tables():
    assert table(["a", "n"], [["long", "1"], ["b", "22"]], right=[1]) == "a      n\nlong   1\nb     22"


HOSTILE = "name\x1b[2J\rfoo\nbar\u202e\x00"


def test_names_cannot_steer_the_terminal(tmp_path):
    assert printable(HOSTILE) == r"name\x1b[2J foo bar\u202e\x00"
    ran = cli("inspect", tmp_path / "a\x1b]0;owned\x07")
    assert ran.code == 2
    assert "\x1b" not in ran.err
    assert "\x07" not in ran.err


def test_problems_are_capped_in_text_and_whole_in_json(capsys):
    Console().fail(ModelError("c", "r", [f"p{i}" for i in range(60)]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: c"
    assert lines[50:] == ["  - p49", "  - and 10 more", "help: r"]


def test_values_json_has_no_word_for():
    value = {"a": [float("inf"), (1.5, float("nan"))], "b": Path("x"), 3: None}
    assert plain(value) == {"a": [None, [1.5, None]], "b": "x", "3": None}


# Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def follow(stream, steps, quiet=False):
    """Text written for (seconds, what, done, total) steps."""
    clock, written = Clock(), []
    progress = Progress(stream, written.append, quiet, clock)
    for seconds, *call in steps:
        clock.now = seconds
        progress(*call)
    progress.clear()
    return written


WORK = [(t / 4, "weights, bytes", t * 25 * 10**6, 4 * 10**9) for t in range(161)]


def test_plain_lines_come_seldom_and_tell_the_time_left():
    lines = follow(io.StringIO(), [(0, "export", 0, 0), *WORK])
    assert lines[:2] == ["export\n", "weights\n"]
    assert lines[2] == "weights:  25% 1.00 GB of 4.00 GB 30 s left\n"
    assert len(lines) == 6


def test_a_bar_stays_on_one_line_and_is_taken_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    drawn = follow(Terminal(), WORK)
    assert not any("\n" in d for d in drawn)
    assert all(d.startswith("\r\x1b[K") for d in drawn)
    assert drawn[-1] == "\r\x1b[K"
    assert drawn[40].endswith("[######..................]  25% 1.00 GB of 4.00 GB 30 s left")
    assert "100%" in drawn[-2]
    monkeypatch.setenv("COLUMNS", "20")
    assert max(len(d) for d in follow(Terminal(), WORK)) <= 19 + len("\r\x1b[K")


def test_what_a_resumed_build_had_does_not_count_for_the_time_left():
    half = [(0, "weights", 500, 1000), (10, "weights", 600, 1000)]
    assert follow(io.StringIO(), half)[-1] == "weights:  60% 600 of 1000 40 s left\n"


def test_quiet_and_dumb(monkeypatch):
    assert follow(io.StringIO(), WORK, quiet=True) == []
    monkeypatch.setenv("TERM", "dumb")
    assert all(line.endswith("\n") for line in follow(Terminal(), WORK))


def synth_on_terminal(tmp_path, **env):
    master, slave = pty.openpty()
    args = ("synth", "tiny-lite", "-o", tmp_path / "m", *SETTINGS)
    process = subprocess.Popen(
        command_line(args), stdout=subprocess.PIPE, stderr=slave, env=environment(**env), stdin=subprocess.DEVNULL
    )
    os.close(slave)
    seen = b""
    try:
        while block := os.read(master, 4096):
            seen += block
    except OSError:  # the other side has closed
        pass
    os.close(master)
    assert process.communicate()[0].decode() == f"{tmp_path / 'm'}\n"
    assert process.returncode == 0
    return seen.decode()


def test_a_real_terminal_gets_a_bar_and_a_dumb_one_lines(tmp_path):
    seen = synth_on_terminal(tmp_path / "a", TERM="xterm")
    assert "\r\x1b[K" in seen
    assert "100%" in seen
    assert "\x1b" not in synth_on_terminal(tmp_path / "b", TERM="dumb")


# Warnings


def test_our_warnings_are_told_those_of_libraries_are_not(tmp_path, capsys, monkeypatch):
    toy_engine.build(tmp_path / "e", status="unverified")

    def noisy(self):
        warnings.warn("deep in a library", UserWarning, stacklevel=1)

    monkeypatch.setattr("dsv2_compile.runtime.engine.Engine.close", noisy)
    assert main(["run", str(tmp_path / "e"), "ab", "--max-new-tokens", "2"]) == 0
    err = capsys.readouterr().err
    assert "unverified" in err
    assert "library" not in err
    assert main(["run", str(tmp_path / "e"), "ab", "--max-new-tokens", "2", "-v"]) == 0
    assert "library" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "e"), "ab", "--max-new-tokens", "2", "--json"]) == 0
    answer = checked(capsys.readouterr().out)
    assert answer["engine_status"] == "unverified"
    assert len(answer["warnings"]) == 1
