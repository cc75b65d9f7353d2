"""``serve``: an engine behind HTTP."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2_compile.cli.command import Command, Result, at_least, engine_argument
from dsv2_compile.cli.failures import translate
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import Dsv2Error, IncompatibleError, UsageError

if TYPE_CHECKING:
    from dsv2_compile.serve import Server

EXTRA = {"jinja2", "starlette", "uvicorn"}
MAX_KEY = 1024
TOLD = ("submitted", "finished", "cancelled", "failed", "prompt_tokens", "new_tokens")
"""What is told of a scheduler at the end."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    engine_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=at_least(0), default=8000, metavar="N", help="0 takes any free port (8000)")
    parser.add_argument("--name", metavar="ID", help="what clients call the model (the name of the directory)")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="per program call (all cores)")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-batch", type=at_least(1), metavar="N", help="sequences at once (the engine's limit)")
    limits.add_argument("--max-tokens", type=at_least(1), metavar="N", help="positions of a sequence (the engine's)")
    limits.add_argument(
        "--chunk-tokens", type=at_least(1), default=256, metavar="N", help="most prompt tokens between two steps (256)"
    )
    limits.add_argument(
        "--max-waiting", type=at_least(1), default=1024, metavar="N", help="sequences that wait, before 429 (1024)"
    )
    limits.add_argument(
        "--max-body", type=at_least(1), default=4 << 20, metavar="BYTES", help="of a request, before 413 (4194304)"
    )
    limits.add_argument(
        "--client-timeout",
        type=at_least(1),
        default=60,
        metavar="S",
        help="seconds a client may take to send a request, or to read what is there for it (60)",
    )
    limits.add_argument(
        "--grace", type=at_least(0), default=30, metavar="S", help="seconds that requests are given at the end (30)"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with a key that every request must bear"
    )


def _run(args: argparse.Namespace, console: Console) -> Result:
    console.progress("loading", 0, 0)
    try:
        from dsv2_compile.serve import Options, Server, address
    except ImportError as e:
        raise _without(e) from e
    from dsv2_compile.runtime import Engine

    options = Options(
        name=args.name or Path(args.engine).resolve().name,
        max_batch=args.max_batch,
        max_tokens=args.max_tokens,
        chunk_tokens=args.chunk_tokens,
        max_waiting=args.max_waiting,
        max_body=args.max_body,
        client_timeout=args.client_timeout,
        api_key=_key(args.api_key_file) if args.api_key_file else None,
    )
    with address.bound(args.host, args.port, options.client_timeout) as listener:
        if not address.is_loopback(listener) and options.api_key is None:
            console.warn(f"whoever reaches {args.host} can use this server: there is no --api-key-file")
        with Engine.load(args.engine, args.threads) as engine:
            with Server(engine, options, listener) as server:
                console.note(f"serving {options.name} at {server.url}/v1")
                stopped = _until_stopped(server, args.grace, console)
            data = {"engine": str(args.engine), "engine_status": engine.manifest.status, "model": options.name}
            return Result({**data, "url": server.url, "served": _served(server)}, stopped)


def _without(e: ImportError) -> Dsv2Error:
    name = (e.name or "").split(".")[0]
    if name not in EXTRA:
        raise e
    return IncompatibleError(f"Serving needs the Python package {name}.", "pip install 'dsv2-compile[serve]'")


def _key(path: Path) -> str:
    try:
        key = path.read_bytes()[: MAX_KEY + 1].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} cannot be read: {e}.", "Give a file that holds a key and nothing else.") from e
    if not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise UsageError(f"{path} does not hold a key.", f"Write one line of at most {MAX_KEY} characters into it.")
    return key


def _until_stopped(server: Server, grace: int, console: Console) -> Dsv2Error:
    try:
        server.wait()
    except KeyboardInterrupt as e:
        console.note(f"stopping: running requests have {grace} s to end, a second signal ends them now")
        server.drain(grace)
        return translate(e)


def _served(server: Server) -> dict[str, Any]:
    responses = [{"path": path, "code": code, "count": n} for (path, code), n in sorted(server.responses.items())]
    stats = asdict(server.stats)
    return {"responses": responses} | {name: stats[name] for name in TOLD}


COMMAND = Command("serve", "Serve an engine over HTTP, as OpenAI's API does.", _arguments, _run)
