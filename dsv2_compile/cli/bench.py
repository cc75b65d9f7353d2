"""``bench``: how fast an engine is, alone or beside eager PyTorch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2_compile.cli.command import Command, Result, at_least, engine_argument
from dsv2_compile.cli.format import duration, size, table
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import UsageError

if TYPE_CHECKING:
    from dsv2_compile.bench import BenchReport, Comparison

ONLY_BESIDE = ("against", "rounds", "timeout")
"""Options with an effect in comparisons only."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    engine_argument(parser)
    parser.add_argument("--prompt-lengths", type=_lengths, default=(128,), metavar="N,N", help="to prefill (128)")
    parser.add_argument("--contexts", type=_lengths, default=(128,), metavar="N,N", help="to decode from (128)")
    parser.add_argument("--batch", type=at_least(1), default=1, metavar="N", help="sequences at once (1)")
    parser.add_argument("--steps", type=at_least(1), default=32, metavar="N", help="decode steps per context (32)")
    parser.add_argument("--repeats", type=at_least(1), default=3, metavar="N", help="of every prefill (3)")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="per program call (all cores)")
    parser.add_argument("--seconds", type=at_least(1), metavar="N", help="begin no further point after this time")
    beside = parser.add_argument_group("comparison, each run in a process of its own, in turn")
    beside.add_argument("--checkpoint", metavar="DIR", help="measure PyTorch on this checkpoint as well")
    beside.add_argument("--against", type=_words, metavar="NAME,NAME", help="eager, compile (both)")
    beside.add_argument("--rounds", type=at_least(1), metavar="N", help="runs of each (2)")
    beside.add_argument("--timeout", type=at_least(1), metavar="SECONDS", help="give a run up after this time")


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(map(at_least(1), text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _run(args: argparse.Namespace, console: Console) -> Result:
    given = {name: value for name in ONLY_BESIDE if (value := getattr(args, name)) is not None}
    if given and not args.checkpoint:
        flags = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"{flags} has no effect without --checkpoint.", "Give the checkpoint, or leave it out.")
    console.progress("loading", 0, 0)
    if args.checkpoint:
        return _compared(args, console)
    from dsv2_compile.bench import bench_engine

    report = bench_engine(
        args.engine,
        args.prompt_lengths,
        args.contexts,
        args.batch,
        args.steps,
        args.threads,
        repeats=args.repeats,
        seconds=args.seconds,
        progress=console.progress,
    )
    for point in report.measurements.skipped:
        console.warn(f"no time was left for {point}")
    console.data(_text(report))
    return Result({"engine": str(args.engine), "report": report.to_json()})


def _compared(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.bench import Workload, compare
    from dsv2_compile.runtime import Engine

    if not Path(args.checkpoint).is_dir():
        raise UsageError(f"{args.checkpoint} is not a directory.", "Give the directory of the checkpoint.")
    Engine.load(args.engine).close()  # what is wrong with it is said here, by its kind: a run only fails
    work = Workload(
        args.prompt_lengths,
        args.contexts,
        args.batch,
        args.steps,
        args.repeats,
        args.threads or len(os.sched_getaffinity(0)),
        seconds=args.seconds,
    )
    subjects = ("engine", *(args.against or ("eager", "compile")))
    found = compare(
        args.engine, args.checkpoint, work, subjects, args.rounds or 2, args.timeout, progress=console.progress
    )
    for run in found.runs:
        if run.failure:
            console.warn(f"{run.subject}, round {run.round}: {run.failure}")
    if found.same_top1 is False:
        console.warn("the runs do not agree on the likeliest tokens")
    console.data(_comparison_text(found))
    return Result({"engine": str(args.engine), "checkpoint": args.checkpoint, "comparison": found.to_json()})


def _text(report: BenchReport) -> str:
    m, w = report.measurements, report.workload
    moved = {t.context: t for t in report.traffic}
    rows = [["prefill", str(p.tokens), *_spread(p.ms), f"{p.tokens_per_second:.1f}", ""] for p in m.prefill]
    for p in m.decode:
        t = moved.get(p.context)
        rows.append(
            [
                "decode",
                str(p.context),
                *_spread(p.ms),
                f"{p.tokens_per_second:.1f}",
                f"{t.gbps:.1f} GB/s, {t.share_of_bandwidth:.0%}" if t else "",
            ]
        )
    header = ["phase", "tokens", "ms", "p10", "p90", "tokens/s", "of memory bandwidth"]
    return "\n".join(
        [
            table(header, rows, right=(1, 2, 3, 4, 5)),
            f"batch {w.batch}, {w.threads} threads; loaded in {duration(report.load_seconds)}, "
            f"peak {size(report.peak_rss_bytes)}, {size(report.private_bytes)} of it private",
            f"memory bandwidth {m.bandwidth_gbps.median:.1f} GB/s; {report.machine.cpu}",
        ]
    )


def _comparison_text(found: Comparison) -> str:
    rows = [
        [line.what, line.subject, *_spread(line.ms), f"{line.times_engine:.2f}" if line.times_engine else ""]
        for line in found.summary
    ]
    return table(["what", "who", "ms", "p10", "p90", "times the engine"], rows, right=(2, 3, 4, 5))


def _spread(ms: Any) -> list[str]:
    return [f"{ms.median:.3g}", f"{ms.p10:.3g}", f"{ms.p90:.3g}"]


COMMAND = Command("bench", "Measure how fast an engine is.", _arguments, _run)
