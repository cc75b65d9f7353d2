"""Which GPU is here, found out in a process of its own: a driver that hangs or crashes costs that process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from dsv2_compile.processes import Failure, Worker, Workers
from dsv2_compile.targets import GPUS

SECONDS = 60.0


@dataclass(frozen=True)
class Gpu:
    """As its driver describes it. ``cuda``: of the driver. ``target``: name of its profile, or empty."""

    name: str
    capability: str
    cuda: str
    target: str


def profile_of(name: str, capability: str) -> str:
    """The profile of a GPU by what its driver calls it; empty if there is none."""
    words = name.lower().replace("-", "").replace(" ", "")
    known = [t for t, gpu in GPUS.items() if gpu.capability == capability and t in words]
    return max(known, key=len, default="")


def identify() -> Gpu | str:
    """The first GPU that this process may see, or why there is none."""
    processes = Workers(Worker(__name__, None, dict(os.environ), SECONDS, "looking for a GPU"))
    try:
        with closing(processes.run([None], [SECONDS])) as outcomes:
            ((_, found),) = outcomes
    finally:
        processes.close()
    return found.reason if isinstance(found, Failure) else found


def start(setup: None) -> Callable[[None], tuple[Gpu | str, bool]]:
    """A worker of `processes`."""
    return lambda job: (_look(), True)


def _look() -> Gpu | str:
    from dsv2_compile.errors import Dsv2Error
    from dsv2_compile.runtime.native.cuda_core import open_driver

    try:
        driver = open_driver(0)
    except Dsv2Error as e:
        return e.cause
    found = Gpu(driver.name, driver.capability, driver.version, profile_of(driver.name, driver.capability))
    driver.close()
    return found
