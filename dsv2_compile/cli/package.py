"""``package``: an engine as another server wants it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsv2_compile.cli.command import Command, Result, engine_argument
from dsv2_compile.cli.format import size
from dsv2_compile.cli.output import Console


def _arguments(parser: argparse.ArgumentParser) -> None:
    engine_argument(parser)
    parser.add_argument(
        "--triton-repo",
        metavar="DIR",
        type=Path,
        required=True,
        help="write a model repository for Triton Inference Server, from an engine for CPUs: a model that streams "
        "text, and the ONNX programs. Checked by this runtime; no Triton server has loaded one yet",
    )
    parser.add_argument("--name", metavar="ID", help="of the model in it (the name of the engine's directory)")
    parser.add_argument("--link", action="store_true", help="refer to ENGINE where it is, instead of copying it")
    parser.add_argument("--force", action="store_true", help="replace a repository that is already there")


def _run(args: argparse.Namespace, console: Console) -> Result:
    console.progress("loading", 0, 0)
    from dsv2_compile.package import Request, package

    name = args.name or args.engine.resolve().name
    found = package(Request(args.engine, args.triton_repo, name, args.link, args.force), console.progress)
    console.note(f"models {', '.join(found.models)}; {size(found.bytes)} copied")
    console.note(f"next: tritonserver --model-repository {found.repository}; its README.md says what that needs")
    console.data(str(found.repository))
    return Result(
        {
            "engine": str(args.engine),
            "engine_status": found.engine_status,
            "repository": str(found.repository),
            "models": list(found.models),
            "bytes": found.bytes,
        }
    )


COMMAND = Command("package", "Write an engine as another server wants it.", _arguments, _run)
