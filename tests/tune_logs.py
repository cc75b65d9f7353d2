"""Trial logs as a sweep might have left them, made up by a seeded generator: no device and no model is behind them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune import lines
from dsv2_compile.autotune.log import SCHEMA
from dsv2_compile.kernels.gpu.kernel import KERNELS

PREDICTED, MEASURED = "predicted, model 1", "measured on NVIDIA Made Up"
CREATED = 1_790_000_000

Trial = dict[str, Any]


def key(kernel: str, target: str = "h800", rows: int = 1, **more: Any) -> dict[str, Any]:
    sizes = {n: {"rows": rows, "batch": max(rows // 64, 1), "context": 4096}[n] for n in KERNELS[kernel].shape}
    fixed = {"source": "5" * 64, "dtype": "bf16", "dims": {"N": 1536, "K": 5120}, "triton": "3.7.1", "ptxas": "12.9"}
    return {"kernel": kernel, "target": target, "sizes": sizes, **fixed, **more}


def configs(kernel: str, count: int, rng: random.Random) -> list[dict[str, int]]:
    """As many different points of the kernel's space, fewer if it has fewer."""
    space = KERNELS[kernel].space
    if math.prod(map(len, space.values())) <= 4 * count:
        every = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
        return rng.sample(every, min(count, len(every)))
    found: dict[tuple[int, ...], dict[str, int]] = {}
    while len(found) < count:
        point = {knob: rng.choice(values) for knob, values in space.items()}
        found[tuple(point.values())] = point
    return list(found.values())


def trials(
    kernel: str, count: int, seed: int, judge: str = PREDICTED, what: str = "prefill", noise: float = 0.03, **of: Any
) -> Iterator[Trial]:
    """Trials of one task. Times rise with the distance of each knob from its best value; configurations with large
    tiles are refused, a few others fail or are wrong. The same ``seed`` gives the same task to every judge."""
    rng, shaken = random.Random(seed), random.Random(f"{seed} {judge}")
    space = KERNELS[kernel].space
    bound = rng.uniform(3, 400)
    weight = {knob: rng.uniform(0.02, 0.5) for knob in space}
    ideal = {knob: rng.randrange(len(values)) for knob, values in space.items()}
    default = {knob: rng.choice(values) for knob, values in space.items()}
    others = [c for c in configs(kernel, count, rng) if c != default][: count - 1]
    points = [default, *sorted(others, key=lambda c: rng.random() * _slowness(c, space, weight, ideal))]
    of_task = key(kernel, **of)
    for i, config in enumerate(points):
        status, reason, took = _outcome(config, shaken) if i else ("ok", "", True)
        exact = bound * 1.15 * math.exp(_slowness(config, space, weight, ideal))
        facts = {"registers": rng.randrange(32, 255), "shared": rng.randrange(0, 200) << 10, "matrix": "wgmma"}
        yield {
            "schema": SCHEMA,
            "key": of_task,
            "what": what,
            "judge": judge,
            "bound": bound,
            "default": i == 0,
            "created": CREATED + i,
            "config": config,
            "status": status,
            "reason": reason,
            "microseconds": exact * math.exp(shaken.gauss(0, noise)) if took else 0.0,
            "seconds": shaken.uniform(0.2, 3),
            "facts": facts if took else {},
        }


def _slowness(config: dict[str, int], space: Any, weight: dict[str, float], ideal: dict[str, int]) -> float:
    """Of the logarithm of the time."""
    return sum(weight[k] * abs(space[k].index(v) - ideal[k]) for k, v in config.items())


def _outcome(config: dict[str, int], rng: random.Random) -> tuple[str, str, bool]:
    volume = math.prod(v for k, v in config.items() if k.startswith("BLOCK"))
    if volume > 1 << 20 and rng.random() < 0.8:
        return "refused", f"{volume * 2} bytes of shared memory, h800 has 232448", False
    draw = rng.random()
    if draw < 0.05:
        return "refused", f"spills {rng.randrange(8, 400, 8)} bytes a thread", False
    if draw < 0.06:
        return "failed", "the compiler was killed after 60 s", False
    if draw < 0.065:
        return "wrong", "out differs from the reference by 0.31, allowed are 0.004", False
    return "ok", "", True


def write(path: Path, values: Iterable[Trial]) -> Path:
    """All of ``values`` as sealed lines."""
    path.write_bytes(b"".join(map(lines.encode, values)))
    return path


def sweep(seed: int = 1) -> Iterator[Trial]:
    """Many tasks for one GPU; the first few measured as well."""
    kernels = ("linear", "linear_swiglu", "mla_decode", "moe_up", "moe_down", "gate", "rms_norm", "mla_prefill")
    for i, (name, rows) in enumerate(itertools.product(kernels, (1, 64, 4096))):
        what = "prefill" if rows == 4096 else f"decode, batch {rows}"
        yield from trials(name, 160, seed + i, what=what, rows=rows)
        if i < 6:
            yield from trials(name, 120, seed + i, MEASURED, what, noise=0.12, rows=rows)
