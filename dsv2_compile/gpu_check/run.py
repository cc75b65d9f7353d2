"""All parts one after the other, each within its time; the JSON is written anew after every part."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv2_compile import __version__
from dsv2_compile.gpu_check import compiling, isolated, machine
from dsv2_compile.gpu_check.options import ERROR, OK, SKIPPED, WRONG, Options, Row
from dsv2_compile.gpu_check.worker import failure

SCHEMA = "dsv2/gpu-check/1"
FILE = "gpu_check.json"
PASSED, FAILED, INCOMPATIBLE, NO_TIME = 0, 4, 5, 6
"""Exit codes."""
MACHINE_SECONDS = 120.0
HOST_PATIENCE = 20
"""Times as long as on a GPU an item may take on the host."""
ENDING = 3.0
"""Seconds kept for the end."""


@dataclass(frozen=True)
class Part:
    """``share``: of the time, beside those of the parts that follow. ``compiling``: of the part's own time at most.
    ``timeout``: seconds for an item. ``workers``: processes on one GPU; what is timed has it for itself."""

    module: str
    title: str
    share: float
    timeout: float
    workers: int = 1
    compiling: float = 0.0


PARTS = {
    "a": Part("kernels", "kernels against fp64", 0.33, 60.0, workers=6, compiling=0.6),
    "b": Part("engines", "engines against eager, by graph and by launch", 0.17, 120.0),
    "c": Part("bench", "kernels, timed", 0.25, 60.0, compiling=0.4),
    "d": Part("decode", "whole model, decode", 0.25, 90.0),
}


def check(options: Options, out: Path, letters: Sequence[str], budget: float, told: Callable[[str], None]) -> Row:
    """Run ``letters`` within ``budget`` seconds -> the report, which is in ``out`` as well."""
    end = time.monotonic() + budget - ENDING
    began = time.monotonic()
    report: Row = {
        "schema": SCHEMA,
        "version": __version__,
        "host": options.host,
        "budget_seconds": budget,
        "versions": machine.versions(),
        "sources": machine.source_digest(),
        "engines": [Path(e).name for e in (*options.engines, *options.plans)],
        "parts": {},
    }
    found = _machine(options, min(end, began + MACHINE_SECONDS))
    report["machine"] = found
    if found["status"] == OK:
        options = replace(options, target=found["target"], machine=found)
        for i, letter in enumerate(letters):
            left = sum(PARTS[x].share for x in letters[i:])
            now = time.monotonic()
            deadline = now + max(end - now, 0.0) * PARTS[letter].share / left
            told(f"{letter}: {PARTS[letter].title}, {deadline - now:.0f} s at most")
            report["parts"][letter] = _part(letter, options, deadline)
            _finish(report, letters, time.monotonic() - began, out)
        if not options.host:
            report["machine"]["clocks_at_the_end"] = machine.clocks()
    return _finish(report, letters, time.monotonic() - began, out)


def _machine(options: Options, deadline: float) -> Row:
    (found,) = isolated.run(
        "dsv2_compile.gpu_check.machine", options, machine.items(options), deadline, 1, MACHINE_SECONDS
    )
    return found


def _part(letter: str, options: Options, deadline: float) -> Row:
    part, begin = PARTS[letter], time.monotonic()
    name = f"dsv2_compile.gpu_check.{part.module}"
    row: Row = {"title": part.title}
    try:
        module = importlib.import_module(name)
        todo = module.items(options)
        if part.compiling and not options.host:
            until = begin + part.compiling * (deadline - begin)
            row["compiled"] = compiling.compile_ahead(module.requests(options, todo), options.target, until)
        workers = 2 if options.host and part.workers > 1 else part.workers
        timeout = part.timeout * (HOST_PATIENCE if options.host else 1)
        known = [r for r in todo if "status" in r]
        waiting = [r for r in todo if "status" not in r]
        groups = list(module.groups(waiting)) if hasattr(module, "groups") else [waiting]
        rows = known + [r for g in groups for r in isolated.run(name, options, g, deadline, workers, timeout)]
        row |= {"rows": rows, "counts": Counter(r["status"] for r in rows), "summary": module.summary(rows)}
    except Exception as e:  # one part must not cost the others
        row |= {"rows": [{"id": part.module, **failure(e)}], "counts": {ERROR: 1}, "summary": {}}
    return {**row, "seconds": round(time.monotonic() - begin, 1)}


def _finish(report: Row, letters: Sequence[str], seconds: float, out: Path) -> Row:
    report["seconds"] = round(seconds, 1)
    report["exit"], report["verdict"] = verdict(report, letters)
    data = json.dumps(_plain(report), indent=1, allow_nan=False) + "\n"
    partial = out / f".{FILE}"
    partial.write_text(data)
    os.replace(partial, out / FILE)
    return report


def verdict(report: Row, letters: Sequence[str]) -> tuple[int, str]:
    """Exit code and why. A peer that fails is no failure; a part that had no time is no success; what was
    skipped for other reasons is counted."""
    first = report["machine"]
    if first["status"] != OK:
        code = INCOMPATIBLE if first.get("incompatible") else FAILED
        return code, first.get("reason", "the GPU was not reached")
    rows = [r for p in report["parts"].values() for r in p["rows"] if not r.get("peer")]
    bad = [r for r in rows if r["status"] in (WRONG, ERROR)]
    if bad and all(r.get("incompatible") for r in bad):
        return INCOMPATIBLE, bad[0]["reason"]
    if bad:
        return FAILED, f"{len(bad)} of {len(rows)} rows failed, first {bad[0]['id']}: {bad[0].get('reason', '')}"
    late = [x for x in letters if x not in report["parts"] or _all_late(report["parts"][x])]
    if late:
        return NO_TIME, f"no time for part {', '.join(late)}"
    skipped = sum(r["status"] == SKIPPED for r in rows)
    return PASSED, f"{len(rows) - skipped} rows passed, {skipped} skipped"


def _all_late(part: Row) -> bool:
    """Something was skipped for want of time, and nothing done."""
    rows = part["rows"]
    return any(r.get("reason") == isolated.LATE for r in rows) and not any(r["status"] == OK for r in rows)


def _plain(value: Any) -> Any:
    """As JSON has it: text for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
