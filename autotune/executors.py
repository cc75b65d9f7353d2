"""Where kernels are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dsv2_compile.backends.cuda.pool import Pool, Runner
from dsv2_compile.targets import Target


@contextmanager
def executor(name: str, target: Target, workers: int | None, address: str | None) -> Iterator[Runner]:
    with Pool(workers) as pool:
        yield pool
