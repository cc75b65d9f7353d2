"""dsv2-compile: the table of commands, and how one is run."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from dsv2_compile import __version__
from dsv2_compile.cli import (
    bench,
    build,
    doctor,
    inspect,
    package,
    run,
    serve,
    synth,
    tune,
    tune_db,
    tune_report,
    verify,
)
from dsv2_compile.cli.command import Command, Result
from dsv2_compile.cli.failures import InternalError, Stopped, stopping_on_signals, translate
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import Dsv2Error, UsageError

COMMANDS: dict[str, Command] = {
    c.name: c
    for c in (
        build.COMMAND,
        tune.COMMAND,
        *tune_db.COMMANDS,
        tune_report.COMMAND,
        run.COMMAND,
        serve.COMMAND,
        package.COMMAND,
        verify.COMMAND,
        inspect.COMMAND,
        bench.COMMAND,
        synth.COMMAND,
        doctor.COMMAND,
    )
}
GROUPS = {" ".join(name.split()[:n]) for name in COMMANDS for n in range(1, len(name.split()))} - {*COMMANDS}
"""What commands of several words begin with, where that is none itself."""
NO_COMMAND = "usage"
"""Names the JSON object when no command was recognised."""

EPILOG = """\
exit codes: 0 ok, 1 internal error, 2 usage, 3 bad model or input, 4 numeric check failed,
5 incompatible environment or artifact, 6 out of memory or disk, 7 partial and resumable,
8 integrity, 130/143 stopped by SIGINT/SIGTERM after a clean stop
"""


class Parser(argparse.ArgumentParser):
    """Mistakes are raised as `UsageError`; options have no abbreviations, which would change with every new one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help shows what there is.")


def overview(group: str = "") -> Parser:
    """What is shown and said where no command was given, or only the beginning of one."""
    top = Parser(
        prog=f"dsv2-compile {group}".strip(),
        description="Compiles DeepSeek-V2 checkpoints to engines that are checked against the eager model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"dsv2-compile {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _shown(f"{group} ".lstrip()).items():
        commands.add_parser(name, help=text)
    return top


def _shown(start: str) -> dict[str, str]:
    """What may follow ``start`` and its help; that of a group is what may follow it in turn."""
    shown: dict[str, list[str]] = {}
    for command in COMMANDS.values():
        if command.name.startswith(start):
            group = next((g for g in GROUPS if command.name.startswith(f"{g} ") and g.startswith(start)), "")
            name, text = (group, command.name[len(group) + 1 :]) if group else (command.name, command.help)
            shown.setdefault(name[len(start) :], []).append(text)
    return {name: ", ".join(texts) for name, texts in shown.items()}


def named(argv: Sequence[str]) -> str:
    """The longest name of a command or a group that ``argv`` begins with, or nothing."""
    known = (name for name in (*COMMANDS, *GROUPS) if list(argv[: len(name.split())]) == name.split())
    return max(known, key=len, default="")


def parser_of(command: Command) -> Parser:
    parser = Parser(prog=f"dsv2-compile {command.name}", description=command.help)
    command.arguments(parser)
    common = parser.add_argument_group("output")
    common.add_argument("--json", action="store_true", help="exactly one JSON object on standard output")
    common.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes")
    common.add_argument("-v", "--verbose", action="store_true", help="a trace with every error, all warnings")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    with stopping_on_signals():
        try:
            return _main(_spelled(sys.argv[1:] if argv is None else argv))
        except Stopped as e:  # while the outcome was being told
            return 128 + e.number


def _main(argv: list[str]) -> int:
    options = argv[: argv.index("--")] if "--" in argv else argv
    name = named(argv)
    rest = argv[len(name.split()) :]
    console = Console("--json" in options, bool({"-q", "--quiet"} & {*options}), bool({"-v", "--verbose"} & {*options}))
    with _warnings_to(console):
        try:
            if name not in COMMANDS:
                overview(name).parse_args(rest)
                raise UsageError("The command must come first.", "dsv2-compile --help shows what there is.")
            args = parser_of(COMMANDS[name]).parse_intermixed_args(rest)
            result = COMMANDS[name].run(args, console)
        except SystemExit as e:  # --help and --version
            return _flushed(console, int(e.code or 0))
        except BaseException as e:
            result = Result(error=translate(e, console.progress.what))
    return _finish(console, COMMANDS[name].schema if name in COMMANDS else NO_COMMAND, result)


def _finish(console: Console, name: str, result: Result) -> int:
    """Tell how it ended. Standard output that cannot be written is an error of its own."""
    console.progress.clear()
    error = result.error
    if error is not None:
        console.fail(error)
    code = error.exit_code if error else 0
    try:
        if console.as_json:
            console.object(envelope(name, code, console.warnings, result))
        return _flushed(console, code)
    except OSError as e:
        error = translate(e, "writing standard output")
        console.fail(error)
        return code or error.exit_code


def envelope(name: str, code: int, notes: Sequence[str], result: Result) -> dict[str, Any]:
    """The one JSON object: fields of every command, then the command's own, then the error."""
    status = "ok" if code == 0 else "interrupted" if code > 128 else "error"
    out = {"schema": f"dsv2/{name}/1", "status": status, "exit": code, "warnings": list(notes), **result.data}
    return out if result.error is None else {**out, "error": _error(result.error)}


def _error(e: Dsv2Error) -> dict[str, Any]:
    kind = InternalError if type(e) is Dsv2Error else type(e)
    return {"code": kind.__name__, "cause": e.cause, "remedy": e.remedy, "problems": list(e.problems)}


def _flushed(console: Console, code: int) -> int:
    console.data("", end="")
    return code


def _spelled(argv: Sequence[str]) -> list[str]:
    """Options may be written with ``_`` for ``-``; what follows ``=`` or ``--`` is left alone."""
    out = list(argv)
    for i, word in enumerate(out):
        if word == "--":
            break
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            out[i] = option.replace("_", "-") + equals + value
    return out


@contextmanager
def _warnings_to(console: Console) -> Iterator[None]:
    """Our own warnings become one line each; those of libraries are shown with -v only."""

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if console.verbose or (category is UserWarning and "dsv2_compile" in filename):
            console.warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


if __name__ == "__main__":
    sys.exit(main())
