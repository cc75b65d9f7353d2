"""``build``: a checkpoint becomes an engine."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv2_compile.cli.command import Command, Result, at_least, quiet_downloads
from dsv2_compile.cli.failures import InterruptedByUser, translate
from dsv2_compile.cli.format import duration, size, table
from dsv2_compile.cli.output import Console
from dsv2_compile.engine.journal import work_directory
from dsv2_compile.errors import Dsv2Error, IncompatibleError, NumericError, ResourceError, UsageError
from dsv2_compile.request import BuildRequest
from dsv2_compile.targets import target

if TYPE_CHECKING:
    from dsv2_compile.engine.manifest import Manifest
    from dsv2_compile.pipeline import BuildPlan, BuildReport


@dataclass(frozen=True)
class Backend:
    """``runs_on``: cpu or gpu. ``flags``: options that only some backends have, as written on the command line."""

    runs_on: str
    available: bool
    dtypes: tuple[str, ...]
    flags: frozenset[str] = frozenset()


BACKENDS = {
    "onnxruntime": Backend("cpu", True, ("float32",), frozenset({"--portable"})),
    "cuda": Backend("gpu", True, ("bfloat16", "float16"), frozenset({"--no-weights", "--tuning"})),
    "tensorrt": Backend("gpu", False, ()),
}
DEFAULT_BACKEND = {"cpu": "onnxruntime", "gpu": "cuda"}
SPECIAL_FLAGS = {"--portable": "portable", "--no-weights": "no_weights", "--tuning": "tuning"}
"""Options with an effect in some backends only, and where the parser puts them."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint: a directory, or a Hugging Face hub id")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cpu", action="store_true", help="build for CPUs (ONNX Runtime)")
    where.add_argument("--gpu", metavar="NAME", help="build for this GPU: h800, h100, ...")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="engine directory to write")
    parser.add_argument(
        "--backend", metavar="NAME", help="onnxruntime (the one for --cpu), cuda (the one for --gpu: native kernels)"
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--strict", action="store_true", help="NaN or infinity in the weights is an error")
    parser.add_argument("--max-batch-size", type=at_least(1), default=8, metavar="N", help="most sequences at once (8)")
    parser.add_argument(
        "--max-seq-len", type=at_least(1), metavar="N", help="most positions per sequence (the model's own limit)"
    )
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32 for --cpu; bfloat16 (the default) or float16 for --gpu"
    )
    parser.add_argument(
        "--mla-form",
        metavar="PHASE=FORM",
        type=_form,
        action="append",
        default=[],
        help="prefill or decode = expanded, absorbed or merged, against the cost model; repeatable",
    )
    parser.add_argument(
        "--portable", action="store_true", help="only standard ONNX operators, none of ONNX Runtime's own"
    )
    parser.add_argument("--no-weights", action="store_true", help="plan and kernels only, of a model of any size")
    parser.add_argument(
        "--tuning",
        metavar="auto|none|FILE",
        help="tuning records that kernels are chosen by: the shipped and your own (auto), none, or those of a file",
    )
    parser.add_argument("--force", action="store_true", help="replace an engine that is already there")
    parser.add_argument("--no-verify", action="store_true", help="skip the numeric check; the engine stays unverified")
    parser.add_argument("--dry-run", action="store_true", help="tell what it would write and need, and write nothing")
    parser.add_argument(
        "--bisect", action="store_true", help="after a pass broke its claim, go on and report each pass"
    )
    parser.add_argument("--dump-ir", metavar="DIR", type=Path, help="write the graph after every pass as text")


def _form(text: str) -> tuple[str, str]:
    phase, equals, form = text.partition("=")
    if not (phase and equals and form):
        raise argparse.ArgumentTypeError(f"{text!r} is not PHASE=FORM, such as decode=absorbed")
    return phase, form


def _run(args: argparse.Namespace, console: Console) -> Result:
    _require_possible(args)
    request = BuildRequest(
        model=args.model,
        backend=_backend(args),
        gpu=args.gpu,
        dtype=args.dtype,
        output=args.output,
        revision=args.revision,
        strict=args.strict,
        max_batch_size=args.max_batch_size,
        max_seq_len=args.max_seq_len,
        mla_form=dict(args.mla_form),
        portable=args.portable,
        force=args.force,
        no_verify=args.no_verify,
        no_weights=args.no_weights,
        tuning=args.tuning or "auto",
        bisect=args.bisect,
        dump_ir=args.dump_ir,
    )
    quiet_downloads(console)
    before = _journal(args.output)
    console.progress("loading", 0, 0)
    try:
        from dsv2_compile import pipeline

        if args.dry_run:
            return _planned(pipeline.plan(request, console.progress), console)
        return _built(pipeline.build(request, console.progress), console)
    except (KeyboardInterrupt, Exception) as e:
        return _stopped(translate(e, console.progress.what), args.output, before)


def _require_possible(args: argparse.Namespace) -> None:
    """Whether such a build is possible at all: answered before anything is loaded."""
    runs_on = "cpu" if args.cpu else "gpu"
    if args.gpu and target(args.gpu).name == "cpu":
        raise UsageError("cpu is not a GPU.", "Write --cpu.")
    name = _backend(args)
    if name not in BACKENDS:
        raise UsageError(
            f"There is no backend {name!r}.", f"Choose from {', '.join(BACKENDS)}, or leave --backend out."
        )
    backend = BACKENDS[name]
    if backend.runs_on != runs_on:
        raise UsageError(
            f"Backend {name} is for {backend.runs_on.upper()}s, not for --{runs_on}.",
            "Leave --backend out, or change both.",
        )
    without = [flag for flag, at in SPECIAL_FLAGS.items() if getattr(args, at) and flag not in backend.flags]
    if without:
        raise UsageError(f"{', '.join(without)} has no effect for backend {name}.", "Leave it out.")
    if not backend.available:
        raise IncompatibleError(
            f"Engines for {args.gpu} need the {name} backend, which is not part of this version.",
            "Leave --backend out: the cuda backend builds for that GPU.",
        )
    if args.dtype and args.dtype not in backend.dtypes:
        raise UsageError(
            f"Backend {name} does not compute in {args.dtype}.",
            f"Use --dtype {' or '.join(backend.dtypes)}, or leave it out.",
        )


def _backend(args: argparse.Namespace) -> str:
    name: str = args.backend or DEFAULT_BACKEND["cpu" if args.cpu else "gpu"]
    return name


def _planned(plan: BuildPlan, console: Console) -> Result:
    for text in plan.warnings:
        console.warn(text)
    e = plan.estimate
    rows = [
        ["weights", size(e.weights_bytes)],
        ["largest weight", size(e.largest_weight_bytes)],
        ["disk", size(e.disk_bytes)],
        ["peak memory", size(e.peak_memory_bytes)],
        ["time", duration(e.seconds)],
        *([f"MLA form, {r['phase']}", r["reason"]] for r in plan.passes if r["name"] == "absorb"),
    ]
    console.data(table(["what", "estimate"], rows))
    return Result({"plan": {"estimate": asdict(e), "programs": plan.programs, "passes": plan.passes}})


def _built(report: BuildReport, console: Console) -> Result:
    for text in report.warnings:
        console.warn(text)
    manifest, check = report.manifest, report.verification
    total = sum(f.bytes for f in manifest.files.values())
    data = {
        "engine": str(report.engine),
        "engine_status": manifest.status,
        "seconds": report.seconds,
        "bytes": total,
        "files": {name: asdict(entry) for name, entry in sorted(manifest.files.items())},
        "passes": list(manifest.passes),
        "numerics": manifest.numerics,
    }
    if check is not None and not check.passed:
        return Result(data, _rejected(report))
    console.note(f"{manifest.status}, {size(total)} in {duration(report.seconds)}")
    if check is not None and manifest.backend != "onnxruntime":
        console.note(f"checked: {check.executed}")
    console.note(_next(manifest, report.engine))
    console.data(str(report.engine))
    return Result(data)


def _next(manifest: Manifest, engine: Path) -> str:
    if manifest.backend == "onnxruntime":
        return f"next: dsv2-compile run {engine} 'some text'"
    return f"next: dsv2-compile inspect {engine} --launches; it runs on GPUs of the kind of {manifest.target}"


def _rejected(report: BuildReport) -> NumericError:
    assert report.verification is not None
    problems = report.verification.problems
    return NumericError(
        f"the engine does not compute what the eager model computes: {problems[0]}",
        f"It is kept as {report.engine}: do not use it. verify --report FILE.html shows every layer.",
        problems[1:],
    )


def _stopped(error: Dsv2Error, output: Path, before: tuple[int, int] | None) -> Result:
    """``error``, saying so if the same command goes on from shards: if this build has written the journal anew."""
    after = _journal(output)
    if after in (None, before) or not isinstance(error, InterruptedByUser | ResourceError):
        return Result(error=error)
    kept = f"The same command goes on from the finished shards in {_work(output)}."
    error.remedy = kept if isinstance(error, InterruptedByUser) else f"{error.remedy} {kept}"
    return Result({"resumable": True}, error)


def _work(output: Path) -> Path:
    return work_directory(Path(os.path.abspath(output)))


def _journal(output: Path) -> tuple[int, int] | None:
    """Tells one writing of the journal from another; None if there is none."""
    try:
        found = (_work(output) / "journal").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


COMMAND = Command("build", "Build an engine from a checkpoint.", _arguments, _run)
