"""``bench``: how fast an engine is."""

from __future__ import annotations

import argparse

from dsv2_compile.cli.command import Command, Result, engine_argument
from dsv2_compile.cli.output import Console


def _arguments(parser: argparse.ArgumentParser) -> None:
    engine_argument(parser)


def _run(args: argparse.Namespace, console: Console) -> Result:
    raise NotImplementedError


COMMAND = Command("bench", "Measure how fast an engine is.", _arguments, _run)
