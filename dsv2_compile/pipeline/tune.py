"""``tune``: a model's configuration -> the calls of its programs -> a sweep -> records that `build` uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune import base
from dsv2_compile.autotune.log import TrialLog, own_log
from dsv2_compile.autotune.record import Key, Record
from dsv2_compile.autotune.sweep import EFFORTS, Sweep, Tally, Told
from dsv2_compile.autotune.tasks import Task, tasks_of
from dsv2_compile.autotune.trial import Judge
from dsv2_compile.backends.cuda.choice import Choice
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.compiler import Compiled
from dsv2_compile.errors import UsageError
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.pipeline.cuda_plan import drafts_of, programs_of
from dsv2_compile.pipeline.cuda_records import configs_of
from dsv2_compile.plan.dtypes import SHORT
from dsv2_compile.progress import Progress, silent
from dsv2_compile.targets import Target

ROUNDS = 3
"""A winner may call for kernels that were not called before, the sum of a product that is split: these are next."""


@dataclass(frozen=True)
class TuneRequest:
    """``model``: a directory or a hub id, of which only the configuration is read. ``kernels``: those to tune, all if
    empty. ``budget``: seconds. ``records`` and ``log``: files, None for the user's own."""

    model: str
    gpu: Target
    dtype: str = "bfloat16"
    revision: str | None = None
    kernels: tuple[str, ...] = ()
    max_batch_size: int = 128
    max_seq_len: int | None = None
    budget: float = float("inf")
    effort: str = "quick"
    records: Path | None = None
    log: Path | None = None


@dataclass
class TuneReport:
    """``sweeps``: one a round. ``left_out``: damaged lines of the trial log."""

    sweeps: list[Sweep] = field(default_factory=list)
    left_out: int = 0
    start: float = field(default_factory=time.monotonic)

    @property
    def records(self) -> list[Record]:
        """Of winners, as far as they have been found."""
        return [r for s in self.sweeps for r in s.found]

    @property
    def tallies(self) -> list[Tally]:
        return [s.tally for s in self.sweeps]

    @property
    def unfinished(self) -> int:
        """Tasks whose search was cut."""
        return sum(t.tasks - t.finished for t in self.tallies)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


def tune(
    request: TuneRequest,
    judge: Judge,
    told: Told = lambda tally: None,
    progress: Progress = silent,
    report: TuneReport | None = None,
) -> TuneReport:
    """Sweep all that the programs of a model call. ``report`` is filled as it goes, for whoever is interrupted.

    Raises UsageError for kernels and limits that the model does not have, ModelError.
    """
    start, report = time.monotonic(), report or TuneReport()
    require_kernels(request.kernels, KERNELS)
    call_tasks = tasks_given(request, progress)
    records, log = request.records or base.own_file(request.gpu), TrialLog(request.log or own_log(request.gpu))
    base.save(records, [])  # that it cannot be written is better known now
    report.left_out = log.damaged
    effort, deadline = EFFORTS[request.effort], start + request.budget
    done: set[Key] = set()
    for _ in range(ROUNDS):
        known = base.load([*base.files_for(request.gpu), records])
        called = call_tasks(known)
        if not done:
            require_kernels(request.kernels, dict.fromkeys(t.call.kernel for t in called))
        asked = request.kernels or KERNELS
        tasks = [t for t in called if t.key not in done and t.call.kernel in asked]
        if not tasks or (done and time.monotonic() >= deadline):
            break
        sweep = Sweep(tasks, request.gpu, judge, log, records, effort, known, deadline, told)
        report.sweeps.append(sweep)
        sweep.run()
        done |= {t.key for t in tasks}
    return report


def require_kernels(asked: Sequence[str], known: Iterable[str]) -> None:
    """UsageError for a name in ``asked`` that is not ``known``."""
    if unknown := sorted(set(asked) - set(known)):
        raise UsageError(f"no kernel {unknown[0]!r} to tune", f"choose from {', '.join(known)}")


def tasks_given(request: TuneRequest, progress: Progress) -> Callable[[base.Base], Sequence[Task]]:
    """What the programs call, given what is known. UsageError for limits that the model does not have, ModelError."""
    config = Checkpoint.settings(request.model, request.revision, progress).config
    positions = request.max_seq_len or config.max_position_embeddings
    if not 1 <= positions <= config.max_position_embeddings:
        raise UsageError(
            f"--max-seq-len {positions} is outside what the model was made for",
            f"give 1 to {config.max_position_embeddings} positions",
        )
    compiled: Compiled = programs_of(config, request.gpu, positions, {}, progress, check=False)

    def tasks(known: base.Base) -> list[Task]:
        drafts = drafts_of(
            compiled,
            request.gpu,
            SHORT[request.dtype],
            request.max_batch_size,
            positions,
            progress,
            Choice(configs_of(known)),
        )
        return tasks_of(drafts.values(), request.gpu)

    return tasks
