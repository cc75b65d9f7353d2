"""What fuzzing finds in the C++ runtime's parsers, under sanitizers.

    python -m tests.slow.bench_cpp_fuzz [--out FILE] [--seconds N] [--targets NAME ...]

Writes artifacts/bench/cpp_fuzz.json. Ends without a file if there is a finding; its input is then in the folder named.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests import cpp_build, cpp_fuzz
from tests.slow.figures import arguments, note, save


def main() -> None:
    parser = arguments("cpp_fuzz", __doc__)
    parser.add_argument("--seconds", type=int, default=120, help="for each target")
    parser.add_argument("--targets", nargs="+", default=list(cpp_fuzz.TARGETS), choices=cpp_fuzz.TARGETS)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 2**31)
    args = parser.parse_args()
    programs = {t: cpp_fuzz.program(t) for t in args.targets}
    scratch = Path(tempfile.mkdtemp(prefix="dsv2-fuzz-"))
    targets = {}
    for target, program in programs.items():
        folder = scratch / target
        folder.mkdir()
        start = time.monotonic()
        run = cpp_fuzz.fuzz(program, cpp_fuzz.CORPUS / target, args.seconds, args.seed, folder)
        seconds = time.monotonic() - start
        if run.finding:
            raise SystemExit(f"{target}, seed {args.seed}, see {folder}:\n{run.finding}")
        targets[target] = {
            "seconds": round(seconds, 1),
            "executions": run.executions,
            "executions_per_second": round(run.executions / seconds),
            "findings": 0,
        }
        note(f"{target}: {targets[target]}")
    shutil.rmtree(scratch)
    version = subprocess.run(
        [cpp_build.compiler(cpp_build.MEMORY), "--version"], capture_output=True, text=True, check=True
    ).stdout
    save(
        args.out,
        compiler=version.splitlines()[0],
        sanitizers=cpp_build.MEMORY,
        engine="libFuzzer" if cpp_build.libfuzzer() else "replay.cpp",
        seed=args.seed,
        targets=targets,
    )


if __name__ == "__main__":
    main()
