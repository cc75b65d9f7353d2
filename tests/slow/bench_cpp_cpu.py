"""The C++ runtime beside the Python one, on the same CPU engines. Writes artifacts/bench/cpp_cpu.json.

    python -m tests.slow.bench_cpp_cpu [--out FILE] [--scratch DIR] [--rounds N] [--engines NAME:SETTING,... ...]

By default DeepSeek-V2-Lite with 3 layers and 8 routed experts, 2.9 GB of weights; and a tiny model, whose steps
are what runtime and ONNX Runtime cost without weights to read. Both runtimes run in turn, each in a process of
its own, with the same threads, tokens and ONNX Runtime; that the tokens come out the same is checked. Files are in
the page cache. Memory is what the kernel counts for the process: anonymous, and mapped from files.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime

from dsv2_compile.bench.stats import Spread
from tests import cpp_build
from tests.slow.figures import ROOT, answer, arguments, cli, note, save

SUBJECTS = ("python", "cpp")


def wheel_library() -> Path:
    (found,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    return found


def measured(command: list[Any]) -> dict[str, Any]:
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def built(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """``name``: a preset, and what to change of it after a colon: lite:layers=3,experts=8."""
    preset, _, changes = name.partition(":")
    words = [word for change in filter(None, changes.split(",")) for word in ("--set", change)]
    checkpoint, engine = folder / f"{preset}-checkpoint", folder / f"{preset}-engine"
    written = answer(cli("synth", preset, "-o", checkpoint, *words, "--json"))
    made = answer(cli("build", checkpoint, "--cpu", "-o", engine, "--json"))
    return engine, {"parameters": written["parameters"], "engine_bytes": made["bytes"], "status": made["engine_status"]}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the runs of one subject: each run gives the median of its steps, the spread is over runs."""
    load = Spread.of([r["load_seconds"] for r in runs])
    check = Spread.of([r["checking_seconds"] for r in runs])
    return {
        "load_seconds": asdict(load),
        "checking_seconds": asdict(check),
        "checking_share_of_load": check.median / load.median,
        "prefill_ms": asdict(Spread.of([statistics.median(r["prefill_ms"]) for r in runs])),
        "decode_ms": asdict(Spread.of([statistics.median(r["decode_ms"]) for r in runs])),
        "memory": {
            when: {kind: statistics.median(r["memory"][when][kind] for r in runs) for kind in ("anon", "file")}
            for when in ("before", "loaded", "used")
        },
    }


def compared(engine: Path, subject: Path, args: Any) -> dict[str, Any]:
    work = [args.threads, args.prompt, args.context, args.steps, args.repeats]
    commands = {
        "python": [sys.executable, "-m", "tests.slow.cpu_subject", engine, *work],
        "cpp": [subject, engine, wheel_library(), *work],
    }
    runs: dict[str, list[dict[str, Any]]] = {s: [] for s in SUBJECTS}
    for turn in range(args.rounds + 1):  # the first fills the page cache
        for name in SUBJECTS if turn % 2 else reversed(SUBJECTS):
            found = measured(commands[name])
            if turn:
                runs[name].append(found)
    tokens = {tuple(r.pop("tokens")) for found in runs.values() for r in found}
    if len(tokens) != 1:
        raise SystemExit(f"The runtimes chose different tokens: {tokens}")
    return {"summary": {name: summary(found) for name, found in runs.items()}, "runs": runs}


def main() -> None:
    parser = arguments("cpp_cpu", __doc__)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--engines", nargs="+", default=["lite:layers=3,experts=8", "tiny-lite"])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3, help="prompts of one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        subject = cpp_build.embedded(Path(__file__).with_name("cpu_subject.cpp"), folder)
        found = {}
        for name in args.engines:
            engine, facts = built(name, folder)
            note(f"{name}: {facts['engine_bytes'] / 1e9:.2f} GB, {facts['status']}")
            found[name] = {**facts, **compared(engine, subject, args)}
    workload = {k: getattr(args, k) for k in ("threads", "prompt", "context", "steps", "repeats", "rounds")}
    save(args.out, onnxruntime=onnxruntime.__version__, workload=workload, engines=found)


if __name__ == "__main__":
    main()
