"""``verify``: is the engine what the eager model computes?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsv2_compile.cli.command import Command, Result, engine_argument, quiet_downloads
from dsv2_compile.cli.output import Console
from dsv2_compile.engine import integrity
from dsv2_compile.errors import NumericError, UsageError

if TYPE_CHECKING:
    from dsv2_compile.checkpoint import Checkpoint
    from dsv2_compile.progress import Progress
    from dsv2_compile.verify import Report

REPORTS = (".html", ".svg")


def _arguments(parser: argparse.ArgumentParser) -> None:
    engine_argument(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="compute the eager results afresh from this checkpoint (directory or hub id) as well",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write the errors of every layer as .html or .svg")


def _run(args: argparse.Namespace, console: Console) -> Result:
    if args.report:
        _require_writable(args.report)
        from dsv2_compile.verify.plot import write_report
    checkpoint = None
    if args.checkpoint:
        quiet_downloads(console)
        from dsv2_compile.checkpoint import Checkpoint

        checkpoint = Checkpoint.open(args.checkpoint, progress=console.progress)
        for text in checkpoint.notes:
            console.warn(text)
    report = _verified(args.engine, checkpoint, console.progress)
    if args.report:
        write_report(report, args.report)
        console.note(f"wrote {args.report}")
    console.data(report.text())
    data = {"engine": str(args.engine), "report": report.to_json(), "report_file": args.report}
    try:
        report.require()
    except NumericError as e:
        return Result(data, e)
    return Result(data)


def _verified(engine: Path, checkpoint: Checkpoint | None, progress: Progress) -> Report:
    """By what the engine's backend has for it: GPU engines are proven without a GPU where there is none."""
    if integrity.read_manifest(engine).backend == "cuda":
        from dsv2_compile.pipeline.cuda_proof import prove

        return prove(engine, checkpoint, progress)
    from dsv2_compile.verify.check import verify_engine

    return verify_engine(engine, checkpoint, progress=progress)


def _require_writable(path: Path) -> None:
    if path.suffix not in REPORTS:
        raise UsageError(f"A report {path.name} cannot be written.", f"Let its name end in {' or '.join(REPORTS)}.")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"{path} cannot be a file.", "Name a file in a directory that exists.")


COMMAND = Command(
    "verify", "Check an engine against the eager model, offline or from its checkpoint.", _arguments, _run
)
