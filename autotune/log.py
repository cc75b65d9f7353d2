"""Every trial that was ever made for a target, on disk before the next one starts: what a sweep goes on from."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from dsv2_compile.autotune import lines
from dsv2_compile.autotune.record import Key, key_json, launch_digest
from dsv2_compile.autotune.schema import check_config, key_of_json
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.autotune.trial import STATUSES, Trial
from dsv2_compile.cache_folder import writable_folder
from dsv2_compile.targets import Target

SCHEMA = "dsv2/trial/1"
FOLDER = "tuning/trials"


def own_log(target: Target) -> Path:
    return writable_folder(FOLDER) / f"{target.name}.jsonl"


@dataclass(frozen=True)
class _Of:
    """What trials have in common whose times may be compared: ``sizes`` are exact, those of the key are rounded."""

    key: Key
    sizes: tuple[tuple[str, int], ...]
    judge: str


class TrialLog:
    """Trials as they were read and added. ``damaged``: lines left out; ``stale``: trials of configurations that mean
    something else now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[_Of, list[Trial]] = defaultdict(list)
        found = lines.read(path)
        self.damaged, self.stale = len(found.damaged), 0
        for value in found.objects:
            try:
                of, trial = _entry(value)
            except (KeyError, ValueError, TypeError, AttributeError):
                self.damaged += 1
                continue
            if value["launch"] == launch_digest(of.key, trial.config):
                self._known[of].append(trial)
            else:
                self.stale += 1

    def of(self, task: Task, judge: str) -> list[Trial]:
        """``judge``: name of what judged, see `sweep.judge_name`."""
        return self._known.get(_Of(task.key, task.call.sizes, judge), [])

    def add(self, task: Task, judge: str, trial: Trial, bound: float, default: bool) -> None:
        """``bound`` in microseconds; ``default``: the configuration is the kernel's own."""
        value = {
            "schema": SCHEMA,
            "key": key_json(task.key),
            "sizes": dict(task.call.sizes),
            "launch": launch_digest(task.key, trial.config),
            "what": task.what,
            "judge": judge,
            "bound": bound,
            "default": default,
            "created": int(time.time()),
            **trial.to_json(),
        }
        lines.append(self.path, [value])
        self._known[_Of(task.key, task.call.sizes, judge)].append(trial)


def _entry(value: dict[str, Any]) -> tuple[_Of, Trial]:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no trial."""
    key = key_of_json(value["key"])
    fields = ("config", "status", "microseconds", "reason", "seconds", "facts")
    trial = Trial(**{f: value[f] for f in fields})
    check_config(key.kernel, trial.config)
    numbers = trial.microseconds, trial.facts.get("bound", 0.0)
    if value["schema"] != SCHEMA or trial.status not in STATUSES or not all(map(isfinite, numbers)):
        raise ValueError("no trial of this version")
    return _Of(key, tuple(sorted(value["sizes"].items())), str(value["judge"])), trial
