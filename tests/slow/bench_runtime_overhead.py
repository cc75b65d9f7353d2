"""What a step of a GPU engine costs its host, with the driver taken out. Writes artifacts/bench/runtime_overhead.json.

    python -m tests.slow.bench_runtime_overhead [--out FILE] [--preset NAME] [--batches N ...] [--plan ENGINE]

The plan is the one that a build makes of the model, launch by launch, but its weights have an element each: where they
are matters to a step, how large they are does not. The driver is one that does nothing: the stand-in for libcuda
without its log in C++, an object of empty methods in Python. So figures are what a runtime adds to whatever a real
driver takes for the same calls, which is not known here. Measured by a caller of the public interface:

    step: one decode step to the next tokens; all launches are one replay of a graph
    decode: the same to logits, which are copied to the caller
    resume: one more token for each sequence through the program for prompts, whose launches are made one by one

Every number is the median over runs, each in a process of its own, of the median over the calls of that run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsv2_compile.bench.stats import Spread
from dsv2_compile.checkpoint.presets import configure, published_config
from dsv2_compile.config import ModelConfig
from dsv2_compile.plan import text
from dsv2_compile.plan.dtypes import ITEM_BYTES, NUMPY
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.plan.plan import FILE, Plan, PlanProgram, Pointer
from tests import cpp_build, cpp_native
from tests.slow.figures import ROOT, arguments, cli, note, save

GPU, POSITIONS = "h800", 4096
KINDS = ("step", "decode", "resume")
WARM = 20


def built(config: ModelConfig, batch: int, folder: Path) -> Path:
    """Plan and kernels of the model, without weights."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(published_config(config, "bfloat16")))
    limits = ("--max-batch-size", batch, "--max-seq-len", POSITIONS)
    cli("build", folder / "model", "--gpu", GPU, "-o", folder / "built", "--no-weights", "--no-verify", *limits)
    return folder / "built"


def with_small_weights(plan: Plan) -> Plan:
    """The same launches over weights that end where the last pointer into them points."""
    return replace(plan, programs={name: _small(p) for name, p in plan.programs.items()})


def _small(program: PlanProgram) -> PlanProgram:
    ends: dict[str, int] = {}
    for launch in program.launches:
        for arg in launch.args:
            if isinstance(arg, Pointer) and program.buffers[arg.buffer].place == "weight":
                ends[arg.buffer] = max(ends.get(arg.buffer, 0), evaluate(arg.offset, {}))
    buffers = {
        name: replace(b, shape=(ends.get(name, 0) // ITEM_BYTES[b.dtype] + 1,)) if b.place == "weight" else b
        for name, b in program.buffers.items()
    }
    return replace(program, buffers=buffers)


def engine(plan: Plan, config: ModelConfig, batch: int, source: Path, out: Path) -> Path:
    weights = {
        name: np.zeros([int(d) for d in b.shape], NUMPY[b.dtype])  # type: ignore[call-overload]  known
        for p in plan.programs.values()
        for name, b in p.buffers.items()
        if b.place == "weight"
    }
    cpp_native.build(
        out, plan, lambda entry: (source / entry.cubin).read_bytes(), weights=weights, model=config,
        max_batch_size=batch, max_seq_len=POSITIONS, status="unverified",
    )  # fmt: skip
    return out


def measured(command: list[Any]) -> float:
    """Median microseconds of a run's calls."""
    driver = cpp_build.built() / "tests" / "libdsv2_cuda_stub.so"
    environment = {**os.environ, "DSV2_LIBCUDA": str(driver), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return statistics.median(json.loads(done.stdout))


def launches(plan: Plan, kind: str, batch: int, context: int) -> int:
    """How many a call makes, or replays, that sees ``context`` positions of each sequence."""
    name = plan.program_for("prefill" if kind == "resume" else "decode", batch, batch, batch * context)
    assert name is not None
    return len(plan.programs[name].launches)


def main() -> None:
    parser = arguments("runtime_overhead", __doc__)
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--set", type=json.loads, default={}, help='changes of the preset, as {"num_hidden_layers": 2}')
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--cached", type=int, default=1024, help="positions of each sequence before")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plan", type=Path, help="an engine of the preset without weights, instead of a build")
    args = parser.parse_args()
    config, most = configure(args.preset, args.set), max(args.batches)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = args.plan or built(config, most, folder)
        plan = with_small_weights(text.parse((source / FILE).read_bytes()))
        path = engine(plan, config, most, source, folder / "engine")
        subject = cpp_build.embedded(Path(__file__).with_name("overhead_subject.cpp"), folder)
        subjects = {"python": [sys.executable, "-m", "tests.slow.overhead_subject"], "cpp": [subject]}
        found = []
        for kind in KINDS:
            for batch in args.batches:
                work = [path, batch, args.cached, kind, WARM, args.calls]
                runs: dict[str, list[float]] = {name: [] for name in subjects}
                for _ in range(args.rounds):
                    for name, command in subjects.items():
                        runs[name].append(measured([*command, *work]))
                case: dict[str, Any] = {
                    "kind": kind,
                    "batch": batch,
                    "launches": launches(plan, kind, batch, args.cached + WARM),
                }
                for name, values in runs.items():
                    case[name] = {"us": asdict(Spread.of(values))}
                    if kind == "resume":
                        case[name]["us_per_launch"] = case[name]["us"]["median"] / case["launches"]
                found.append(case)
                note(f"{kind}, batch {batch}: " + ", ".join(f"{n} {case[n]['us']['median']:.1f} us" for n in subjects))
    workload = {"preset": args.preset, "changes": args.set, "cached": args.cached, "calls": args.calls}
    around = {"driver": "does nothing", "load_average": os.getloadavg()}
    save(args.out, workload={**workload, "rounds": args.rounds, **around}, cases=found)


if __name__ == "__main__":
    main()
