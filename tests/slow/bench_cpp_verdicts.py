"""Whether Python and C++ say the same of mutated engines, JSON texts and safetensors files, and what large ones cost.

    python -m tests.slow.bench_cpp_verdicts [--out FILE] [--engines N] [--texts N] [--files N] [--flips N] [--cuts N]

Writes artifacts/bench/cpp_verdicts.json. Ends without a file at the first disagreement, or if a change is not found.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import verdicts
from tests.cpp_build import program
from tests.null.test_cpp_verdicts import check_engines, check_flips, check_json, check_large, check_safetensors
from tests.slow.figures import arguments, note, save

BATCH = 1000
"""Engines on disk at a time."""


def main() -> None:
    parser = arguments("cpp_verdicts", __doc__)
    parser.add_argument("--engines", type=int, default=10_000)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    verdicts.measured([str(program("verdict")), "json"], [])  # built before the clock runs
    figures: dict[str, Any] = {"seed": args.seed}
    start = time.monotonic()
    engines: Counter[tuple[str, int]] = Counter()
    for at in range(0, args.engines, BATCH):
        with scratch() as folder:
            engines += check_engines(folder, min(BATCH, args.engines - at), args.seed + at)
        note(f"{sum(engines.values())} engines")
    kinds = sorted({kind for kind, _ in engines})
    figures["engines"] = {
        "count": sum(engines.values()),
        "disagreements": 0,
        "by_edit_and_code": {k: {str(c): n for (kind, c), n in sorted(engines.items()) if kind == k} for k in kinds},
        "seconds": round(time.monotonic() - start, 1),
    }
    with scratch() as folder:
        for name, check, count in (("json", check_json, args.texts), ("safetensors", check_safetensors, args.files)):
            start = time.monotonic()
            codes = check(folder / name, count, args.seed)
            figures[name] = {
                "count": sum(codes.values()),
                "disagreements": 0,
                "by_code": {str(c): n for c, n in sorted(codes.items())},
                "seconds": round(time.monotonic() - start, 1),
            }
            note(f"{name}: {figures[name]}")
    with scratch() as folder:
        found = check_flips(folder, args.flips, args.cuts, args.seed)
    if found != args.flips + args.cuts:
        raise SystemExit(f"{found} of {args.flips} flipped bits and {args.cuts} cuts were found")
    figures["damage"] = {"flips": args.flips, "cuts": args.cuts, "found": found}
    with scratch() as folder:
        figures["large"] = check_large(folder)
    save(args.out, **figures)


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dsv2-verdicts-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
