"""``synth``: a random checkpoint in the published layout."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsv2_compile.cli.command import Command, Result, at_least
from dsv2_compile.cli.format import scaled, size
from dsv2_compile.cli.output import Console

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="v2, lite (the published sizes), tiny or tiny-lite")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="change a setting of the preset: layers=2, experts=8, vocab=4096, or any name in config.json; repeatable",
    )
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32 (bfloat16)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="same seed, same bytes (0)")
    parser.add_argument("--max-shard-size", type=_bytes, default=4 << 30, metavar="BYTES", help="500M, 4Gi, ... (4Gi)")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is already there")


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a number or true/false where it reads as one, else the text itself."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    words: dict[str, Any] = {"true": True, "false": False, "null": None}
    for parse in (words.__getitem__, int, float):
        try:
            return name, parse(value)
        except (KeyError, ValueError):
            continue
    return name, value


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k|M|G|Ki|Mi|Gi)?B?", text)
    value = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 500M or 4Gi")
    return value


def _run(args: argparse.Namespace, console: Console) -> Result:
    from dsv2_compile.checkpoint.synth import SynthRequest, synth

    request = SynthRequest(
        output=args.output,
        preset=args.preset,
        overrides=dict(args.set),
        dtype=args.dtype,
        seed=args.seed,
        max_shard_bytes=args.max_shard_size,
        force=args.force,
    )
    report = synth(request, console.progress)
    console.note(
        f"{scaled(report.parameters, ' parameters')} in {report.tensors} tensors, {size(report.bytes)} of "
        f"{report.dtype}, {report.shards} shards"
    )
    console.data(str(report.path))
    data = {k: v for k, v in asdict(report).items() if k != "path"}
    return Result({"checkpoint": str(report.path), "preset": args.preset, "seed": args.seed, **data})


COMMAND = Command("synth", "Write a random checkpoint in the published layout.", _arguments, _run)
