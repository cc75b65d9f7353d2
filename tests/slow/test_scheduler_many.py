"""Ten thousand short requests through one scheduler: all are answered, and no memory is kept."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from dsv2_compile.runtime import Engine, Sampling
from tests import toy_engine
from tests.toy_engine import MAX_BATCH, NAN

REQUESTS, CLIENTS, WARM = 10_000, 16, 2_000
MOST_GROWTH = 4 << 20


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_requests_keep_no_memory(tmp_path):
    toy_engine.build(tmp_path / "e")
    ended: list[str] = []

    def client(scheduler, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            prompt = rng.integers(NAN + 1, 256, int(rng.integers(1, 12))).tolist()
            submission = scheduler.submit(prompt, int(rng.integers(1, 8)), Sampling(1.0, seed=seed))
            if rng.random() < 0.1:
                submission.cancel()
            try:
                ended.append(submission.result().finish)
            except Exception:
                ended.append(submission.finish)

    def run(scheduler, count: int, seed: int) -> None:
        each = count // CLIENTS
        clients = [threading.Thread(target=client, args=(scheduler, seed + k, each)) for k in range(CLIENTS)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()

    with Engine.load(tmp_path / "e", threads=1) as engine, engine.scheduler(MAX_BATCH, 64, 16) as scheduler:
        run(scheduler, WARM, 0)
        before = resident()
        run(scheduler, REQUESTS, 100)
        grown = resident() - before
        stats = scheduler.stats
    assert len(ended) == stats.submitted == REQUESTS + WARM
    assert stats.finished == ended.count("stop") + ended.count("length") > 0.8 * REQUESTS
    assert (stats.cancelled, stats.failed) == (ended.count("cancelled"), ended.count("failed"))
    assert stats.cancelled > 0
    assert (stats.waiting, stats.live) == (0, 0)
    assert grown < MOST_GROWTH, f"{grown / 2**20:.1f} MiB more after {REQUESTS} requests"
    print(f"{grown / 2**20:.2f} MiB more after {REQUESTS} requests; {stats}")
