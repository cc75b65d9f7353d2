"""``tune``: the fastest configuration of every kernel that a model calls, measured, or predicted without the GPU."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2_compile.cli.command import Command, Result, at_least, quiet_downloads
from dsv2_compile.cli.failures import translate
from dsv2_compile.cli.format import duration, table
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import Dsv2Error, PartialError, UsageError
from dsv2_compile.targets import target

if TYPE_CHECKING:
    from dsv2_compile.autotune.record import Record
    from dsv2_compile.autotune.sweep import Tally
    from dsv2_compile.pipeline.tune import TuneReport, TuneRequest

DTYPES = ("bfloat16", "float16")
EFFORTS = ("quick", "full")
EXECUTORS = ("local", "ray")
UNITS = {"s": 1, "m": 60, "h": 3600}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint, of which the configuration is read: directory or hub id"
    )
    parser.add_argument("--gpu", metavar="NAME", required=True, help="tune for this GPU: h800, h100, ...")
    parser.add_argument("--kernel", metavar="K", action="append", default=[], help="this kernel only; repeatable")
    parser.add_argument(
        "--budget",
        metavar="TIME",
        type=_time,
        default=float("inf"),
        help="90s, 30m, 2h; the batch under way then is finished",
    )
    parser.add_argument(
        "--effort", choices=EFFORTS, default="quick", help="configurations of a call: 16 or 160 (quick)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of weights and activations (bfloat16)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--max-batch-size", type=at_least(1), default=128, metavar="N", help="most sequences (128)")
    parser.add_argument(
        "--max-seq-len", type=at_least(1), metavar="N", help="most positions per sequence (the model's own limit)"
    )
    parser.add_argument("--predict", action="store_true", help="predict times although the GPU is here")
    parser.add_argument("--records", metavar="FILE", type=Path, help="append records to FILE instead of your own")
    parser.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="where kernels are compiled and measured (local)"
    )
    parser.add_argument("--address", metavar="A", help="of the Ray cluster; without it one is started here")
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="compiling processes (one a CPU)")


def _time(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2]]


def _run(args: argparse.Namespace, console: Console) -> Result:
    gpu = target(args.gpu)
    if not gpu.is_gpu:
        raise UsageError(f"{gpu.name} is no GPU.", "Name one with --gpu.")
    quiet_downloads(console)
    console.progress("loading", 0, 0)
    from dsv2_compile.autotune.executors import executor
    from dsv2_compile.autotune.judges import judge_for
    from dsv2_compile.pipeline.tune import TuneReport, TuneRequest, tune

    request = TuneRequest(
        model=args.model,
        gpu=gpu,
        dtype=args.dtype,
        revision=args.revision,
        kernels=tuple(args.kernel),
        max_batch_size=args.max_batch_size,
        max_seq_len=args.max_seq_len,
        budget=args.budget,
        effort=args.effort,
        records=args.records,
    )
    report = TuneReport()
    with ExitStack() as stack:
        try:
            runner = stack.enter_context(executor(args.executor, gpu, args.workers, args.address))
            judge = stack.enter_context(judge_for(gpu, runner, args.predict, args.executor, args.address))
            if judge.device:
                console.note(f"measuring on {judge.device}")
            elif args.predict:
                console.note(f"times are predicted for {gpu.name}, not measured")
            tune(request, judge, lambda tally: _told(console, tally), console.progress, report)
        except (KeyboardInterrupt, Exception) as e:
            error = translate(e, console.progress.what)
            return Result(_data(request, report), _resumable(error, report))
    return _done(request, report, console)


def _told(console: Console, tally: Tally) -> None:
    failed = sum(n for status, n in tally.trials.items() if status != "ok")
    detail = f"{tally.what}: best {tally.best:.1f} us, bound {tally.bound:.1f} us; {failed} unusable"
    console.progress("trials", tally.found + sum(tally.trials.values()), tally.planned, detail)


def _done(request: TuneRequest, report: TuneReport, console: Console) -> Result:
    if report.left_out:
        console.warn(f"{report.left_out} damaged lines of the trial log were left out; their trials were made again")
    rows = [_row(r) for r in report.records]
    console.data(
        table(["kernel", "sizes", "configuration", "us", "default", "bound", "share"], rows, right=(3, 4, 5, 6))
    )
    tried = sum(sum(t.trials.values()) for t in report.tallies)
    console.note(f"{tried} trials in {duration(report.seconds)}, {len(report.records)} records")
    for reason, count in _reasons(report).most_common(5):
        console.note(f"  {count} x {reason}")
    error = None
    if report.unfinished:
        error = PartialError(
            f"the time was up before {report.unfinished} searches were finished; each has the best found so far",
            "Run the same command again: it goes on from the trials that were made.",
        )
    return Result(_data(request, report), error)


def _row(r: Record) -> list[str]:
    config = " ".join(f"{k}={v}" for k, v in r.config)
    sizes = " ".join(f"{k}={v}" for k, v in r.key.sizes)
    times = [f"{t:.1f}" for t in (r.microseconds, r.default_microseconds, r.bound)]
    return [r.key.kernel, sizes, config, *times, f"{r.bound / r.microseconds:.0%}"]


def _reasons(report: TuneReport) -> Counter[str]:
    return sum((t.reasons for t in report.tallies), Counter())


def _data(request: TuneRequest, report: TuneReport) -> dict[str, Any]:
    return {
        "gpu": request.gpu.name,
        "seconds": report.seconds,
        "trials": dict(sum((t.trials for t in report.tallies), Counter())),
        "reasons": dict(_reasons(report).most_common(50)),
        "tasks": sum(t.tasks for t in report.tallies),
        "unfinished": report.unfinished,
        "records": [r.to_json() for r in report.records],
    }


def _resumable(error: Dsv2Error, report: TuneReport) -> Dsv2Error:
    if report.tallies and error.exit_code in (6, 130, 143):
        error.remedy = "Run the same command again: it goes on from the trials that were made."
    return error


COMMAND = Command("tune", "Find the fastest configuration of every kernel for a GPU.", _arguments, _run)
