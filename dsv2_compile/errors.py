"""Errors a user can act on: one line of cause, one line of remedy, one documented exit code.

Exit codes: 0 ok, 1 internal, 2 usage, 3 bad model or input, 4 numeric check failed,
5 incompatible environment or artifact, 6 out of memory, disk or time, 7 partial and resumable,
8 integrity, 130/143 interrupted after a clean stop.
"""

from __future__ import annotations

from collections.abc import Sequence

COPY_AGAIN = "Copy the engine again from where it was built, or rebuild it with dsv2-compile build."
"""What to do with an engine that is not, or not whole, what was built."""


class Dsv2Error(Exception):
    """Base class. ``cause`` and ``remedy`` are one line each; ``problems`` lists every finding."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str, problems: Sequence[str] = ()) -> None:
        self.cause = cause
        self.remedy = remedy
        self.problems = tuple(problems)
        super().__init__("\n".join([cause, *(f"  - {p}" for p in self.problems), remedy]))


class UsageError(Dsv2Error):
    exit_code = 2


class ModelError(Dsv2Error):
    """A checkpoint or an input is malformed, inconsistent or not supported."""

    exit_code = 3


class PassError(ModelError):
    """A pass found no match where the config promises one, or left the graph invalid."""


class NumericError(Dsv2Error):
    exit_code = 4


class NotANumber(NumericError):
    """An engine computed NaN or infinity where logits should be."""


class IncompatibleError(Dsv2Error):
    exit_code = 5


class ResourceError(Dsv2Error):
    exit_code = 6


class PartialError(Dsv2Error):
    exit_code = 7


class IntegrityError(Dsv2Error):
    exit_code = 8
