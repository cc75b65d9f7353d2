"""What bench_cpp_cpu.py measures of the Python runtime; cpu_subject.cpp is the same program in C++.

python -m tests.slow.cpu_subject ENGINE THREADS PROMPT CONTEXT STEPS REPEATS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import Draw, Engine, Sampling


def memory() -> dict[str, int]:
    """Bytes of this process, as the kernel counts them."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(lines[key].split()[0]) * 1024 for kind, key in (("anon", "RssAnon"), ("file", "RssFile"))}


def main() -> None:
    path = sys.argv[1]
    threads, prompt, context, steps, repeats = map(int, sys.argv[2:])
    before = memory()
    # refused for an option without effect, which is known when all files have been checked; the first time warms up
    for _ in range(2):
        start = time.perf_counter()
        try:
            Engine.load(path, threads=threads, cache_tokens=1)
            raise SystemExit("cache_tokens had an effect")
        except UsageError:
            checking = time.perf_counter() - start
    start = time.perf_counter()
    engine = Engine.load(path, threads=threads)
    loading = time.perf_counter() - start
    loaded = memory()
    session = engine.session(1, context + prompt + steps)
    greedy = [Draw(Sampling(), 0.0)]
    ids = ((np.arange(prompt) * 7919 + 13) % engine.config.vocab_size)[None].astype(np.int32)
    prefills, decodes, tokens = [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        token = session.start(ids, [prompt], greedy)
        prefills.append(1e3 * (time.perf_counter() - start))
        tokens.append(int(token[0]))
    shape = (engine.config.num_hidden_layers, 1, context, engine.config.cache_dim)
    values = (np.arange(np.prod(shape)) * 7919 % 1000).astype(np.float32) / np.float32(1000) - np.float32(0.5)
    session.restore(values.reshape(shape), [context])
    del values
    for _ in range(steps):
        start = time.perf_counter()
        token = session.step(token, greedy)
        decodes.append(1e3 * (time.perf_counter() - start))
        tokens.append(int(token[0]))
    print(
        json.dumps(
            {
                "checking_seconds": checking,
                "load_seconds": loading,
                "prefill_ms": prefills,
                "decode_ms": decodes,
                "tokens": tokens,
                "memory": {"before": before, "loaded": loaded, "used": memory()},
            }
        )
    )


if __name__ == "__main__":
    main()
