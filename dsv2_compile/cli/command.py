"""What a command is, what it answers, and the argument types they share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv2_compile.cli.output import Console
from dsv2_compile.errors import Dsv2Error


@dataclass(frozen=True)
class Result:
    """``data``: the fields a command adds to its JSON object. ``error``: what it ends with although it has data."""

    data: Mapping[str, Any] = field(default_factory=dict)
    error: Dsv2Error | None = None


@dataclass(frozen=True)
class Command:
    """``name`` is what the user types, one word or several. ``run`` writes data and notes to the console as it goes.
    Errors are raised, or returned beside data."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], Result]

    @property
    def schema(self) -> str:
        """Name of its JSON object: that of the command with ``-`` for a space."""
        return self.name.replace(" ", "-")


def at_least(low: int) -> Callable[[str], int]:
    """Argument type: an integer of at least ``low``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {low}")
        return value

    return parse


def quiet_downloads(console: Console) -> None:
    """Call before anything imports huggingface_hub: its own bars are for terminals only."""
    if console.quiet or not console.progress.terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def engine_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="engine directory that build wrote")
