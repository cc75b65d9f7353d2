"""``tune report``: what a sweep found, as a page to judge it by."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsv2_compile.cli.command import Command, Result
from dsv2_compile.cli.format import printable, table
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import ModelError, UsageError
from dsv2_compile.targets import GPUS, target

if TYPE_CHECKING:
    from dsv2_compile.autotune.report.data import Case, Report


def _arguments(parser: argparse.ArgumentParser) -> None:
    for option, metavar, kind, told in (
        ("--gpu", "NAME", str, "these GPUs only (all that were tuned for)"),
        ("--log", "FILE", Path, "trial logs (your own)"),
        ("--records", "FILE", Path, "records (the shipped and your own)"),
    ):
        parser.add_argument(option, nargs="+", action="extend", default=[], metavar=metavar, type=kind, help=told)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the page, .html")


def _run(args: argparse.Namespace, console: Console) -> Result:
    gpus = [target(name).name for name in args.gpu]
    if no_gpu := set(gpus) - set(GPUS):
        raise UsageError(f"{min(no_gpu)} is no GPU.", "Name one with --gpu.")
    _require_writable(args.output)
    for path in (*args.log, *args.records):
        if not path.is_file():
            raise ModelError(f"{path} is no file.", "Name the trial logs or records that tune wrote.")
    console.progress("reading trials", 0, 0)
    import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
    from dsv2_compile.autotune import base
    from dsv2_compile.autotune.log import own_log
    from dsv2_compile.autotune.report.build import report
    from dsv2_compile.autotune.report.page import page
    from dsv2_compile.autotune.report.read import read

    of = [target(name) for name in gpus or GPUS]
    logs = args.log or [p for t in of if (p := own_log(t)).is_file()]
    trials = read(logs)
    tried = {e.key.target for e in trials.entries}
    records = args.records or [p for t in of if gpus or t.name in tried for p in base.files_for(t) if p.is_file()]
    found = report(trials, base.load(records), list(map(str, [*logs, *records])), gpus)
    if not found.parts:
        raise ModelError(
            f"There is no sound trial or record in {len(found.files)} files.",
            "Tune first, or name trial logs with --log.",
        )
    console.progress("drawing", 0, 0)
    args.output.write_text(page(found), encoding="utf-8")
    _tell(found, console)
    console.note(f"wrote {args.output}")
    return Result({"report_file": args.output, "report": found.to_json(points=False)})


def _require_writable(path: Path) -> None:
    if path.suffix != ".html":
        raise UsageError(f"A report {path.name} cannot be written.", "Let its name end in .html.")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"{path} cannot be a file.", "Name a file in a directory that exists.")


def _tell(found: Report, console: Console) -> None:
    from dsv2_compile.autotune.report.page import MEASURED_ALL, notes, verdict

    head = ("kernel", "what", "sizes", "trials", "unusable", "default", "best", "gain", "bound", "of it", "rests on")
    for part in found.parts:
        rows = [list(map(printable, _row(c))) for c in part.cases]
        console.data(f"{part.target}\n{table(head, rows, right=(3, 4, 5, 6, 7, 8, 9))}")
    for told in notes(found):
        console.warn(told)
    if verdict(found) != MEASURED_ALL:
        console.warn(verdict(found))


def _row(c: Case) -> list[str]:
    from dsv2_compile.autotune.report.numbers import share, time, times

    w, m = c.winner, c.main
    tried = [str(m.trials), str(m.configs - m.counts["ok"])] if m else ["0", "0"]
    default = time(w.default) if w and w.default else m.default.status if m and m.default else "-"
    best = [time(w.microseconds), times(w.gain) if w.gain else "-", time(c.bound), share(w.of_bound)] if w else []
    rests = w.judge if w else "nothing usable"
    return [c.key.kernel, c.what, c.where, *tried, default, *(best or ["-", "-", time(c.bound), "-"]), rests]


COMMAND = Command("tune report", "Show what a sweep found as a page of plots and tables.", _arguments, _run)
