"""Every trial that was ever made for a target, on disk before the next one starts: what a sweep goes on from."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from dsv2_compile.autotune import lines
from dsv2_compile.autotune.record import Key, key_json
from dsv2_compile.autotune.schema import key_of_json
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.autotune.trial import STATUSES, Trial
from dsv2_compile.cache_folder import writable_folder
from dsv2_compile.targets import Target

SCHEMA = "dsv2/trial/1"
FOLDER = "tuning/trials"


def own_log(target: Target) -> Path:
    return writable_folder(FOLDER) / f"{target.name}.jsonl"


class TrialLog:
    """``known``: trials by key and by what judged them, as they were read and added; ``damaged``: lines left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[tuple[Key, str], list[Trial]] = defaultdict(list)
        found = lines.read(path)
        self.damaged = len(found.damaged)
        for value in found.objects:
            entry = _entry(value)
            if entry is None:
                self.damaged += 1
            else:
                key, judge, trial = entry
                self.known[key, judge].append(trial)

    def of(self, task: Task, judge: str) -> list[Trial]:
        """``judge``: name of what judged, see `judge_name`."""
        return self.known.get((task.key, judge), [])

    def add(self, task: Task, judge: str, trial: Trial, bound: float, default: bool) -> None:
        """``bound`` in microseconds; ``default``: the configuration is the kernel's own."""
        value = {
            "schema": SCHEMA,
            "key": key_json(task.key),
            "what": task.what,
            "judge": judge,
            "bound": bound,
            "default": default,
            "created": int(time.time()),
            **trial.to_json(),
        }
        lines.append(self.path, [value])
        self.known[task.key, judge].append(trial)


def _entry(value: dict[str, Any]) -> tuple[Key, str, Trial] | None:
    try:
        if value["schema"] != SCHEMA or value["status"] not in STATUSES:
            return None
        fields = ("config", "status", "microseconds", "reason", "seconds", "facts")
        return key_of_json(value["key"]), str(value["judge"]), Trial(**{f: value[f] for f in fields})
    except (KeyError, ValueError, TypeError):
        return None
