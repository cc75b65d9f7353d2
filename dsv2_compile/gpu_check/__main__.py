"""python -m dsv2_compile.gpu_check

Exit codes: 0 all passed, 2 usage, 4 something was wrong, 5 no GPU or one that cannot be used, 6 a part had no time
for anything. What was skipped is counted in the verdict.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dsv2_compile.engine import integrity
from dsv2_compile.errors import Dsv2Error, UsageError

BUDGET = 465.0
"""Seconds: eight minutes with the start of Python and the end."""
LETTERS = "abcd"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        letters = _letters(args.parts)
        engines, plans = _sorted(args.engine)
        args.out.mkdir(parents=True, exist_ok=True)
    except Dsv2Error as e:
        print(f"gpu_check: {e.cause} {e.remedy}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(f"gpu_check: {args.out}: {e.strerror}", file=sys.stderr)
        return 2
    from dsv2_compile.gpu_check.options import Options
    from dsv2_compile.gpu_check.run import check
    from dsv2_compile.gpu_check.table import text

    options = Options(host=args.host, engines=engines, plans=plans)
    report = check(options, args.out, letters, args.budget, lambda line: print(line, file=sys.stderr, flush=True))
    print(text(report))
    return int(report["exit"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dsv2_compile.gpu_check", description="Check everything on a GPU.")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where gpu_check.json goes")
    parser.add_argument(
        "--engine",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="engine to check; one built with --no-weights is timed with random weights; repeatable",
    )
    parser.add_argument("--host", action="store_true", help="a dry run on the host, at toy sizes")
    parser.add_argument(
        "--parts",
        default=",".join(LETTERS),
        help="a: kernels, b: engines, c: kernel times, d: decode of a whole model (a,b,c,d)",
    )
    parser.add_argument("--budget", metavar="SECONDS", type=float, default=BUDGET, help=f"in all ({BUDGET:g})")
    return parser


def _letters(text: str) -> list[str]:
    found = [x.strip() for x in text.split(",") if x.strip()]
    if not found or set(found) - set(LETTERS):
        raise UsageError(f"There are no parts {text!r}.", f"Choose from {','.join(LETTERS)}.")
    return list(dict.fromkeys(found))


def _sorted(roots: Sequence[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Engines with weights, and those without."""
    found: tuple[list[str], list[str]] = [], []
    for root in roots:
        manifest = integrity.read_manifest(root)
        if manifest.backend != "cuda":
            raise UsageError(f"{root} is no engine for a GPU.", "Build it with --gpu.")
        found[not manifest.weights].append(str(root.absolute()))
    return tuple(found[0]), tuple(found[1])


if __name__ == "__main__":
    sys.exit(main())
