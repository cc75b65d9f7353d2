"""Where kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

from dsv2_compile.autotune.ray_runner import RayRunner
from dsv2_compile.backends.cuda.build_cache import Built
from dsv2_compile.backends.cuda.pool import Failed, Pool, Runner
from dsv2_compile.errors import UsageError
from dsv2_compile.kernels.gpu.aot import Job
from dsv2_compile.targets import Target


def _local(target: Target, workers: int | None, address: str | None) -> AbstractContextManager[Runner]:
    if address is not None:
        raise UsageError("--address has no effect without --executor ray.", "Leave it out, or add --executor ray.")
    return Pool(workers)


def _ray(target: Target, workers: int | None, address: str | None) -> AbstractContextManager[Runner]:
    runner: RayRunner[Job, Built | Failed] = RayRunner(
        partial(Pool, 1), lambda reason: Failed(reason, "", crashed=True), target, workers=workers, address=address
    )
    return runner


EXECUTORS: Mapping[str, Callable[[Target, int | None, str | None], AbstractContextManager[Runner]]] = {
    "local": _local,
    "ray": _ray,
}


def executor(
    name: str, target: Target, workers: int | None = None, address: str | None = None
) -> AbstractContextManager[Runner]:
    """The runner ``name``, for kernels of ``target``. ``workers``: at most so many, None for all there are.
    ``address``: of a Ray cluster. Raises UsageError, IncompatibleError, ResourceError."""
    if name not in EXECUTORS:
        raise UsageError(f"no executor is called {name}", f"Known are {', '.join(EXECUTORS)}.")
    return EXECUTORS[name](target, workers, address)
