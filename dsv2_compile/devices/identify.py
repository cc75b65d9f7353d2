"""Which GPU is here, found out in a process of its own: a driver that hangs or crashes costs that process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

from dsv2_compile.processes import Failure, Worker, Workers
from dsv2_compile.targets import GPUS

SECONDS = 60.0
_OTHERS = frozenset(("mig", "laptop", "d"))
"""Words that make of a name that of another GPU with less of everything."""


@dataclass(frozen=True)
class Gpu:
    """As its driver describes it. ``cuda``: of the driver. ``target``: name of its profile, or empty."""

    name: str
    capability: str
    cuda: str
    target: str


def profile_of(name: str, capability: str) -> str:
    """The profile of a GPU by the words that its driver calls it by; empty if there is none, as for a part of one."""
    words = re.findall("[a-z0-9]+", name.lower())
    spoken = {*words, *map("".join, pairwise(words))}
    known = [t for t, gpu in GPUS.items() if gpu.capability == capability and t in spoken]
    return known[0] if len(known) == 1 and not _OTHERS.intersection(words) else ""


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
