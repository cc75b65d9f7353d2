"""Every kernel's default configuration, compiled for every GPU at a model's dims; writes what it takes of the GPU.

    python -m tests.slow.bench_kernels_compile [--out FILE] [--models v2 lite] [--targets h800 ...] [--rows 1 32 4096]

Nothing is launched: registers, shared memory and instructions are read from the cubins. Wall time of a target is that
of a machine that may have been busy with other things; processor time of a kernel is not.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import compile_all, request
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.backends.cuda.resources import row
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.checkpoint.presets import configure
from dsv2_compile.kernels.gpu import all as _all  # noqa: F401  registers them
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.kernels.gpu.shapes import shapes
from dsv2_compile.targets import GPUS, Target, target
from tests.slow.figures import Budget, arguments, note, save

Places = dict[Request, list[dict[str, Any]]]


def wanted(models: list[str], rows: list[int], gpu: Target, dtype: str) -> Places:
    """Requests, and where in which model each is needed; most do not depend on the number of rows."""
    found: Places = {}
    for model in models:
        config = configure(model, {})
        for count in rows:
            for shape in shapes(config, count):
                kernel = KERNELS[shape.kernel]
                asked = request(kernel, shape.dims, kernel.default(shape.dims, gpu), dtype)
                found.setdefault(asked, []).append({"model": model, "rows": count, "what": shape.what})
    return found


def measure(models: list[str], rows: list[int], gpu: Target, dtype: str, cache: BuildCache) -> dict[str, Any]:
    places = wanted(models, rows, gpu, dtype)
    start = time.perf_counter()
    results = compile_all(list(places), gpu, cache=cache)
    seconds = time.perf_counter() - start
    table = [{**row(c, gpu), "log": c.log[-500:], "used_for": places[c.request]} for c in results]
    return {
        "target": gpu.name,
        "capability": gpu.capability,
        "ptxas": toolchain(gpu).ptxas,
        "wall_seconds": round(seconds, 1),
        "kernels": len(results),
        "from_cache": sum(c.cached for c in results),
        "distinct_cubins": len({c.cubin.image for c in results if c.cubin}),
        "refused": [f"{c.request.kernel}: {c.reason}" for c in results if not c.ok],
        "spilling": [
            f"{c.request.kernel}, {places[c.request][0]['what']}: {c.report.spills} bytes"
            for c in results
            if c.report and c.report.spills
        ],
        "matrix": dict(Counter(c.report.matrix for c in results if c.report)),
        "rows": table,
    }


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all targets that share it: parts of one architecture mostly do."""
    found: dict[str, dict[str, Any]] = {}
    for r in rows:
        rest = {k: v for k, v in r.items() if k != "target"}
        found.setdefault(json.dumps(rest, sort_keys=True), {"targets": [], **rest})["targets"].append(r["target"])
    return list(found.values())


def main() -> None:
    parser = arguments("kernels_compile", __doc__)
    parser.add_argument("--models", nargs="+", default=["v2", "lite"])
    parser.add_argument("--targets", nargs="+", default=list(GPUS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 32, 4096], help="new rows to choose tiles for")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--seconds", type=float, default=7200, help="begin no further target after this time")
    args = parser.parse_args()
    budget, runs = Budget(args.seconds), []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.targets:
            if budget.allows(name):
                run = measure(args.models, args.rows, target(name), args.dtype, BuildCache(Path(folder)))
                runs.append(run)
                note(json.dumps({k: v for k, v in run.items() if k != "rows"}))
    rows = merged([r for run in runs for r in run.pop("rows")])
    compiler = toolchain(target(args.targets[0])).triton
    save(args.out, triton=compiler, dtype=args.dtype, targets=runs, skipped=budget.skipped, kernels=rows)


if __name__ == "__main__":
    main()
