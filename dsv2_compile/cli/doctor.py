"""``doctor``: can this machine build and run engines?"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from dsv2_compile.cli.command import Command, Result
from dsv2_compile.cli.format import printable
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import IncompatibleError


def _arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def _run(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.cli import checks

    console.progress("looking around", 0, 0)
    found = checks.run_all()
    width = max(len(c.name) for c in found)
    for c in found:
        console.data(f"{c.state:5} {c.name:{width}}  {printable(c.found)}")
        if c.remedy:
            console.data(f"{'':5} {'':{width}}  -> {c.remedy}")
    failed = [c for c in found if c.state == "fail"]
    data = {"checks": [asdict(c) for c in found]}
    if not failed:
        return Result(data)
    problems = [f"{c.name}: {c.found}" for c in failed]
    return Result(data, IncompatibleError("this machine cannot do all of it", "Do what the lines above say.", problems))


COMMAND = Command("doctor", "Check this machine: packages, processor, memory, disk, GPU.", _arguments, _run)
