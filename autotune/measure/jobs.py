"""What a measuring process is asked and answers, and what it needs of the device it measures on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from dsv2_compile.autotune.search import Pairs
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.kernels.gpu.aot import Cubin
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config, Dims, Kernel


@dataclass(frozen=True)
class Step:
    """A launch but for its tensors. ``cubin``: None where the source itself is run."""

    name: str
    dim_pairs: tuple[tuple[str, int | float | bool], ...]
    config_pairs: Pairs
    cubin: Cubin | None = None

    @property
    def kernel(self) -> Kernel:
        return KERNELS[self.name]

    @property
    def dims(self) -> Dims:
        return dict(self.dim_pairs)

    @property
    def config(self) -> Config:
        return dict(self.config_pairs)


def compiled_step(asked: Request, cubin: Cubin | None) -> Step:
    """Without the PTX: it is long, and no launch reads it."""
    return Step(asked.kernel, asked.dims, asked.config, cubin and replace(cubin, ptx=""))


@dataclass(frozen=True)
class Subject:
    """A configuration of a call: ``steps`` are its kernel and, where one has to follow, that one."""

    call: Call
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Measure:
    """Check, then time. ``close``: microseconds; what is not slower is timed with more repeats. ``reference``: what
    `Bench.reference` said before anything else was timed, empty if nothing was yet."""

    subject: Subject
    close: float = float("inf")
    reference: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Verify:
    """Check at a held-out shape, with several seeds."""

    subject: Subject
    shape: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Race:
    """Run ``repeats`` times, or as often as ``seconds`` allow: the same bits each time."""

    subject: Subject
    repeats: int
    seconds: float


@dataclass(frozen=True)
class Compare:
    """Time in turns with ``other``."""

    subject: Subject
    other: Subject
    rounds: int


Job: TypeAlias = Measure | Verify | Race | Compare


@dataclass(frozen=True)
class Found:
    """``status``: of `trial`. ``microseconds`` of one call, the median, and ``margin``: half of its 95 % interval."""

    status: str
    reason: str = ""
    microseconds: float = 0.0
    margin: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


class Bench(Protocol):
    """A device under measurement. Checks return what is wrong, in words, or nothing."""

    def check(self, subject: Subject, seed: int) -> str:
        """At the sizes of the call, or at the largest whose reference can be computed."""

    def held_out(self, subject: Subject, shape: int, seed: int) -> str: ...

    def race(self, subject: Subject, repeats: int, seconds: float) -> tuple[str, int]:
        """What is wrong, and how many runs there were."""

    def timed(self, subject: Subject) -> Call:
        """The call with all sizes that the inputs which it is timed with decide."""

    def times(self, subject: Subject, repeats: int) -> list[float]:
        """Microseconds of one call, with cold caches, in each of about so many repeats."""

    def reference(self) -> dict[str, float]:
        """Microseconds of kernels that are always the same, by name."""

    def rates(self) -> tuple[float, float]:
        """Bytes/s and FLOP/s of those, at their fastest."""

    def facts(self) -> dict[str, Any]:
        """How the device is doing, plain data."""

    def sound(self) -> None:
        """Raises if the device has faulted and cannot be used any more."""
