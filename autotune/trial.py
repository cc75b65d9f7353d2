"""One configuration tried on one task, and who tries it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dsv2_compile.autotune.tasks import Task
from dsv2_compile.kernels.gpu.kernel import Config

OK = "ok"
REFUSED = "refused"
"""It does not compile, or could not be launched, or spills: no fault of the machine."""
FAILED = "failed"
"""The compiler or the measuring process crashed, hung or faulted with it."""
WRONG = "wrong"
"""It does not compute what the reference computes."""
IMPOSSIBLE = "impossible"
"""Its time is below what the target can do."""
STATUSES = (OK, REFUSED, FAILED, WRONG, IMPOSSIBLE)


@dataclass(frozen=True)
class Trial:
    """``microseconds``: of one call, with what has to follow it, if OK. ``seconds``: what the trial took.
    ``facts``: plain data about it, for the report."""

    config: Config
    status: str
    microseconds: float = 0.0
    reason: str = ""
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == OK

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "config": dict(self.config), "facts": dict(self.facts)}


@dataclass(frozen=True)
class Confirmed:
    """``trial``: what is taken, None if nothing may be; ``checks``: names of what it has passed. ``refuted``: trials
    that were OK until they were looked at more closely, with what they are now. ``default_microseconds``: of the
    default, timed in turns with ``trial``; 0 if it was not."""

    trial: Trial | None
    checks: tuple[str, ...] = ()
    refuted: tuple[Trial, ...] = ()
    default_microseconds: float = 0.0


class Judge(Protocol):
    """``provenance``: `record.MEASURED` or `record.PREDICTED`; ``device``: what was measured on, or empty."""

    provenance: str
    device: str

    def judge(self, task: Task, configs: Sequence[Config]) -> Generator[Trial, None, None]:
        """A trial of each, as they come. Closing the iterator stops what is left."""

    def confirm(self, task: Task, ranked: Sequence[Trial], default: Trial | None) -> Confirmed:
        """Which trial is taken, after whatever more has to be seen of it. ``ranked``: those that are OK, fastest
        first."""
