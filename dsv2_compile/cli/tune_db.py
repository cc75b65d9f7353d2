"""``tune db``: what can be done with tuning records: list, merge, validate, export, gc."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2_compile.cli.command import Command, Result
from dsv2_compile.cli.format import printable, table
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import Dsv2Error, IncompatibleError, IntegrityError, ModelError, UsageError
from dsv2_compile.targets import target

if TYPE_CHECKING:
    from dsv2_compile.autotune.database import Collected, Contents, Shown

HEADER = ("gpu", "kernel", "sizes", "configuration", "us", "of bound", "from", "age", "stale", "dims")
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def _files(count: str, what: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", metavar="FILE", type=Path, nargs=count, help=what)

    return add


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", metavar="NAME", help="those for this GPU")
    parser.add_argument("--kernel", metavar="K", help="those of this kernel")


def _no_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="give up if another process is writing")


def _into(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--into", metavar="FILE", type=Path, help="to extend this file instead of your own")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="file to write")


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")


def _all(*parts: Callable[[argparse.ArgumentParser], None]) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        for part in parts:
            part(parser)

    return add


def _list(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.autotune import database

    _check_filters(args)
    found, read = database.show(args.files or database.all_files(), args.gpu, args.kernel)
    if found:
        console.data(table(HEADER, [_row(s) for s in found], right=(4, 5, 7)))
    console.note(f"{len(found)} records, {sum(bool(s.stale) for s in found)} of them stale, in {len(read)} files")
    _warn_of(read, console)
    shown = [{**s.record.to_json(), "file": s.path, "stale": s.stale} for s in found]
    return Result({"records": shown, "files": [_contents(c) for c in read]})


def _merge(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.autotune import database

    merged, read = database.merge(args.files, args.into, _waiting(console), not args.no_wait)
    for m in merged:
        console.data(f"{printable(str(m.path))}: {m.added} added, {m.better} better, {m.known} no better")
        if m.stale:
            console.warn(f"{m.stale} records are for other versions of their kernels, and were left out")
    _warn_of(read, console)
    return Result({"merged": [_told(m) for m in merged], "files": [_contents(c) for c in read]})


def _validate(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.autotune import database

    read = database.validate(args.files)
    rows, data = [], []
    for c in read:
        stale = sum(bool(database.stale(r)) for r in c.records)
        counts = (len(c.records), stale, len(c.damaged), len(c.refused), len(c.newer))
        rows.append([printable(str(c.path)), *map(str, counts)])
        data.append({**_contents(c), "stale": stale})
    console.data(table(["file", "sound", "stale", "damaged", "refused", "newer"], rows, right=range(1, 6)))
    return Result({"files": data}, _verdict(read))


def _export(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.autotune import database

    _check_filters(args)
    count = database.export(database.all_files(), args.output, args.gpu, args.kernel)
    console.note(f"{count} records")
    console.data(str(args.output))
    return Result({"file": args.output, "records": count})


def _gc(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.autotune import database

    paths = args.files or database.own_files()
    if not paths:
        console.note("there are no tuning records of yours")
    done = [database.collect(p, args.dry_run, _waiting(console), not args.no_wait) for p in paths]
    for c in done:
        console.data("\n".join(_collected(c, args.dry_run)))
    return Result({"dry_run": args.dry_run, "files": [_told(c) for c in done]})


def _check_filters(args: argparse.Namespace) -> None:
    from dsv2_compile.kernels.gpu.kernel import KERNELS

    if args.gpu and not target(args.gpu).is_gpu:
        raise UsageError(f"{args.gpu} is no GPU.", "Name one, or leave --gpu out.")
    if args.kernel and args.kernel not in KERNELS:
        raise UsageError(f"unknown kernel {args.kernel!r}", f"choose from {', '.join(KERNELS)}")


def _waiting(console: Console) -> Callable[[str], None]:
    return lambda owner: console.note(f"waiting for {owner}, which is writing the records")


def _row(s: Shown) -> list[str]:
    r = s.record
    return [
        *(r.key.target, r.key.kernel, _pairs(r.key.sizes), _pairs(r.config)),
        *(f"{r.microseconds:.1f}", f"{r.bound / r.microseconds:.0%}"),
        f"{r.provenance} on {r.device}" if r.device else r.provenance,
        _age(time.time() - r.created),
        ", ".join(s.stale) or "-",
        f"{r.key.dtype} {_pairs(r.key.dims)}",
    ]


def _pairs(pairs: Sequence[tuple[str, Any]]) -> str:
    return " ".join(f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in pairs)


def _age(seconds: float) -> str:
    length, unit = next((u for u in UNITS if seconds >= u[0]), UNITS[-1])
    return f"{max(int(seconds / length), 0)} {unit}"


def _warn_of(read: Sequence[Contents], console: Console) -> None:
    for c in read:
        lost = {"damaged": len(c.damaged), "refused": len(c.refused), "newer": len(c.newer)}
        if any(lost.values()):
            told = ", ".join(f"{n} {kind}" for kind, n in lost.items() if n)
            console.warn(f"{c.path}: {told} lines were left out; dsv2-compile tune db validate names them")


def _contents(c: Contents) -> dict[str, Any]:
    refused = [{"line": n, "why": why} for n, why in c.refused]
    counts = {"records": len(c.records), "damaged": c.damaged, "refused": refused, "newer": c.newer}
    return {"file": c.path, **counts}


def _told(done: Any) -> dict[str, Any]:
    return {"file" if name == "path" else name: value for name, value in vars(done).items()}


def _verdict(read: Sequence[Contents]) -> Dsv2Error | None:
    """The worst first: what was damaged may have been anything."""
    damaged = [f"{c.path}: line {n} is not what was written" for c in read for n in c.damaged]
    newer = [f"{c.path}: line {n} is of a later version" for c in read for n in c.newer]
    refused = [f"{c.path}: line {n}: {why}" for c in read for n, why in c.refused]
    problems = [*damaged, *newer, *refused]
    if damaged:
        return IntegrityError("damaged tuning records", "tune db gc moves such lines aside.", problems)
    if newer:
        return IncompatibleError("tuning records of a later version", "Use that version for them.", problems)
    if refused:
        return ModelError("tuning records that this version cannot use", "Leave those lines out.", problems)
    return None


def _collected(c: Collected, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    lines = [f"{printable(str(c.path))}: {c.kept} {would}kept, {sum(c.dropped.values())} {would}dropped"]
    lines += [f"  {count} {reason}" for reason, count in sorted(c.dropped.items())]
    return lines + ([f"  {c.moved} lines {would}moved to {printable(str(c.aside))}"] if c.moved else [])


_SOME = _files("*", "files of tuning records (the shipped ones and yours)")
COMMANDS = (
    Command("tune db list", "List tuning records.", _all(_SOME, _filters), _list),
    Command(
        "tune db merge",
        "Merge tuning records of others into yours.",
        _all(_files("+", "others"), _into, _no_wait),
        _merge,
    ),
    Command("tune db validate", "Check files of tuning records.", _files("+", "files to check"), _validate),
    Command("tune db export", "Write the best tuning records to a file.", _all(_filters, _output), _export),
    Command(
        "tune db gc",
        "Drop tuning records that are superseded or stale, move damaged lines aside.",
        _all(_files("*", "files to clear out (yours)"), _dry_run, _no_wait),
        _gc,
    ),
)
