"""How fast memory can be read here and now: what decoding one token at a time cannot beat."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES = 512 << 20
"""Read in one pass: many times the last-level cache."""
PASSES = 5
_SETTLE = 0.05  # seconds for other thread pools to stop spinning


class Bandwidth:
    """numpy's max over an array of float32, a part for each thread; numpy releases the GIL and uses SIMD loads."""

    def __init__(self, threads: int, nbytes: int = BYTES) -> None:
        self._parts = np.array_split(np.zeros(nbytes // 4, np.float32), threads)
        for part in self._parts:  # a page that was never written is not memory yet
            part.fill(1)
        self._pool = ThreadPoolExecutor(threads)
        self.method = (
            f"numpy max over {nbytes >> 20} MiB of float32, {threads} threads, median of {PASSES} passes, "
            "before and after what it is compared with"
        )
        self._pass()

    def gbps(self) -> float:
        """GB/s of reading, the median of a few passes."""
        time.sleep(_SETTLE)
        return float(np.median([self._pass() for _ in range(PASSES)]))

    def _pass(self) -> float:
        start = time.perf_counter()
        list(self._pool.map(np.max, self._parts))
        return sum(part.nbytes for part in self._parts) / (time.perf_counter() - start) / 1e9

    def close(self) -> None:
        self._pool.shutdown()
        self._parts = []
