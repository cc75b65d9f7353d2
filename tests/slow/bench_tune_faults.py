"""What crashes and kills cost a sweep, counted: on a SIMULATED device, with the real processes, judges, logs, sweeps.

    python -m tests.slow.bench_tune_faults [--out FILE] [--crashes N] [--kills N]

Writes artifacts/tuning/faults.json. Compilers that are made to crash or hang among others that work; then `kill -9` of
the sweep and of its workers, in turns, at random moments, each followed by the same sweep again. It ends without a file
if a configuration has no line, a trial was made twice, an innocent one is marked or a process is left.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dsv2_compile.autotune import lines
from dsv2_compile.autotune.search import pairs
from tests.null.test_tune_faults import check_after_kills, check_compilers, kill_parents_and_workers
from tests.slow.figures import ROOT, arguments, save


def main() -> None:
    parser = arguments("tune_faults", __doc__)
    parser.set_defaults(out=ROOT / "artifacts/tuning/faults.json")
    parser.add_argument("--crashes", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        compilers, kills = Path(scratch) / "compilers", Path(scratch) / "kills"
        compilers.mkdir()
        kills.mkdir()
        check_compilers(compilers, args.crashes, patch)
        kill_parents_and_workers(kills, args.kills, args.seed)
        check_after_kills(kills, args.kills)
        save(
            args.out,
            device="SIMULATED, see tests/simulated_device.py",
            planted_crashes=args.crashes,
            compilers=counted(compilers / "log.jsonl"),
            kills=args.kills,
            seed=args.seed,
            after_kills=counted(kills / "log.jsonl"),
        )


def counted(log: Path) -> dict[str, Any]:
    """``distinct``: trials of different configurations; as many as there are lines if none was made again."""
    found = lines.read(log)
    distinct = {(repr(o["key"]), pairs(o["config"])) for o in found.objects}
    return {
        "lines": len(found.objects),
        "damaged": len(found.damaged),
        "distinct": len(distinct),
        "by_status": Counter(o["status"] for o in found.objects),
    }


if __name__ == "__main__":
    main()
