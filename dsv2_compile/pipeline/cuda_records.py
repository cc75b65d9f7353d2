"""Tuning records in a build: which are used, and what the manifest says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsv2_compile.autotune import base
from dsv2_compile.autotune.record import MEASURED, PREDICTED
from dsv2_compile.autotune.tasks import Task, tasks_of
from dsv2_compile.backends.cuda.choice import Tuned
from dsv2_compile.backends.cuda.draft import Draft
from dsv2_compile.errors import UsageError
from dsv2_compile.kernels.gpu.kernel import Call, Config
from dsv2_compile.targets import Target

AUTO, NONE = "auto", "none"
DEFAULT = "default"


def files_of(tuning: str, gpu: Target) -> list[Path]:
    """``tuning``: `AUTO` for the shipped records and the user's own, `NONE`, or the name of a file."""
    if tuning in (AUTO, NONE):
        return base.files_for(gpu) if tuning == AUTO else []
    if not Path(tuning).is_file():
        raise UsageError(f"there is no file of tuning records {tuning!r}", f"name one, or {AUTO} or {NONE}")
    return [Path(tuning)]


def configs_of(known: base.Base) -> Tuned:
    def tuned(call: Call, target: Target) -> Config | None:
        found = known.find(call, target)
        return None if found is None else dict(found.config)

    return tuned


def used(drafts: Iterable[Draft], known: base.Base, gpu: Target) -> list[dict[str, Any]]:
    """For every call of ``drafts`` its configuration and where that is from, plain data in the order of the programs.
    A record whose configuration a build could not take counts as `DEFAULT`."""
    return [_entry(task, known, gpu) for task in tasks_of(drafts, gpu)]


def _entry(task: Task, known: base.Base, gpu: Target) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kernel": task.call.kernel,
        "sizes": dict(task.key.sizes),
        "config": dict(task.config),
        "launches": task.count,
        "provenance": DEFAULT,
    }
    record = known.find(task.call, gpu)
    if record is None or record.config != task.config:
        return entry
    entry |= {"provenance": record.provenance, "microseconds": record.microseconds, "bound": record.bound}
    entry |= {"tuned_at": dict(record.key.sizes), "checks": list(record.checks)}
    return entry | ({"device": record.device} if record.provenance == MEASURED else {"model": record.model})


def warnings(entries: list[dict[str, Any]], known: base.Base, gpu: Target) -> tuple[str, ...]:
    """What the user should know: predictions nobody has measured, records that could not be used."""
    counts, found = Counter(e["provenance"] for e in entries), []
    if counts[PREDICTED]:
        found.append(
            f"{counts[PREDICTED]} of {len(entries)} kernel configurations were chosen by predicted times, none "
            f"of which was measured on {gpu.name}: dsv2-compile tune measures where there is one"
        )
    if known.stale:
        found.append(
            f"{len(known.stale)} tuning records for {gpu.name} are stale (other sources or compilers) and were not "
            "used: dsv2-compile tune makes new ones"
        )
    if known.damaged or known.refused:
        found.append(
            f"{known.damaged} damaged and {len(known.refused)} refused lines of tuning records were left out: "
            "dsv2-compile tune db validate names them"
        )
    return tuple(found)
