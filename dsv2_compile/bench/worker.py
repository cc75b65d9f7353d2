"""One subject in this process: request on standard input, report on standard output, both JSON.

    python -m dsv2_compile.bench.worker < request.json

Request: {"subject": "engine", "eager" or "compile", "path": directory, "workload": fields of Workload}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from dsv2_compile.bench.engine import BenchReport, bench_engine
from dsv2_compile.bench.measure import Workload
from dsv2_compile.progress import Progress


def report(request: dict[str, Any], progress: Progress) -> BenchReport:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request["workload"].items()}
    work = Workload(**fields)
    if request["subject"] != "engine":
        from dsv2_compile.bench.peers import bench_peer

        return bench_peer(request["subject"], request["path"], work, progress)
    return bench_engine(
        request["path"],
        work.prompt_lengths,
        work.contexts,
        work.batch,
        work.decode_steps,
        work.threads,
        work.capacity,
        work.repeats,
        work.seconds,
        progress,
    )


def main() -> None:
    # Libraries may print: only the report may reach standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found = report(json.load(sys.stdin), lambda what, done, total: print(what, file=sys.stderr, flush=True))
    json.dump(found.to_json(), out)
    out.close()


if __name__ == "__main__":
    main()
