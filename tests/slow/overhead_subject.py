"""What bench_runtime_overhead.py measures of the Python runtime: overhead_subject.cpp in Python.

python -m tests.slow.overhead_subject ENGINE BATCH POSITIONS KIND WARM CALLS
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.runtime import Draw, Engine, Sampling
from dsv2_compile.runtime.native import cuda, cuda_core


class IdleDriver:
    """A `Driver` that does nothing at all; what is read back is zeros."""

    name, capability, version = "no GPU", "sm_90", "13.0"

    def _nothing(self, *_: Any) -> None: ...

    activate = free = copy_in = fill = widths = launch = replay = discard = sync = close = _nothing

    def memory(self) -> tuple[int, int]:
        return 1 << 40, 1 << 41

    def alloc(self, nbytes: int) -> int:
        return 1 << 30

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        return np.zeros(nbytes, np.uint8)

    def copy_out(self, host: NDArray[Any], address: int) -> None:
        host[:] = 0

    def load(self, image: bytes, symbol: str, shared: int) -> str:
        return symbol

    def capture(self, work: Callable[[], None]) -> int:
        work()
        return 0


def main(path: str, batch: int, positions: int, kind: str, warm: int, calls: int) -> list[float]:
    driver: Any = IdleDriver()
    cuda.open_driver = cuda_core.open_driver = lambda device: driver
    draws = [Draw(Sampling(), 0.0)] * batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is unverified
        engine = Engine.load(path)
    with engine, engine.session(batch) as session:
        token: Sequence[int] = session.start(np.ones((batch, positions), np.int32), [positions] * batch, draws)
        work: dict[str, Callable[[], Any]] = {
            "step": lambda: session.step(token, draws),
            "decode": lambda: session.decode(token),
            "resume": lambda: session.resume(np.reshape(token, (batch, 1)), [1] * batch, draws),
        }
        found = []
        for _ in range(warm + calls):
            start = time.perf_counter()
            work[kind]()
            found.append(1e6 * (time.perf_counter() - start))
    return found[warm:]


if __name__ == "__main__":
    engine_path, *numbers = sys.argv[1:]
    batch, positions, kind, warm, calls = numbers
    print(json.dumps(main(engine_path, int(batch), int(positions), kind, int(warm), int(calls))))
