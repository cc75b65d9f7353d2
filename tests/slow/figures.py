"""What the figure scripts share: how they are started, the machine they name, how they run the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsv2_compile.bench import machine
from dsv2_compile.bench.process import Finished, run

ROOT = Path(__file__).parents[2]


def arguments(name: str, doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / f"artifacts/bench/{name}.json")
    return parser


def save(out: Path, **figures: Any) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": asdict(machine()), **figures}, indent=1, allow_nan=False) + "\n")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cli(*words: Any, timeout: float | None = None, allowed: Collection[int] = (0,)) -> Finished:
    """Run ``dsv2-compile`` in a process of its own. SystemExit with its words if it ends with another status."""
    done = run([sys.executable, "-m", "dsv2_compile", *map(str, words)], timeout=timeout, cwd=ROOT)
    if done.status not in allowed:
        raise SystemExit(f"dsv2-compile {' '.join(map(str, words))} ended with {done.status}:\n{done.stderr[-2000:]}")
    return done


def answer(done: Finished) -> dict[str, Any]:
    """The JSON object on standard output."""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def settings(overrides: Mapping[str, int]) -> list[str]:
    return [word for name, value in overrides.items() for word in ("--set", f"{name}={value}")]


class Budget:
    """Seconds for a whole script: cases that come too late are named, not run."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.skipped: list[str] = []

    def allows(self, case: str) -> bool:
        if time.monotonic() < self._end:
            return True
        self.skipped.append(case)
        note(f"no time left for {case}")
        return False
