"""Part a: every kernel, every case, against its reference in fp64, with its default configuration and others."""

from __future__ import annotations

import importlib
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.backends.cuda.compile import request
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.devices.device import Device, Refused, open_device
from dsv2_compile.devices.guarded import Guarded
from dsv2_compile.gpu_check.options import ERROR, OK, REFUSED, WRONG, Options, Row
from dsv2_compile.kernels.gpu.check import Case, Violation, check
from dsv2_compile.kernels.gpu.kernel import Config, Kernel
from dsv2_compile.targets import target

DTYPES = ("bf16", "fp16", "fp32")
ENGINES = DTYPES[:2]
"""Of engines; fp32 shows whether an error is one of rounding, and its tiles need not fit."""
VARIED_CASES, VARIANTS = 3, 3
"""Cases of a kernel that are run with other configurations, and how many of them each."""
State = tuple[Device, Mapping[str, list[Case]]]


def cases(options: Options) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = importlib.import_module(options.cases).CASES
    return found


def items(options: Options) -> list[Row]:
    """bf16 with the default configuration, then other configurations, then the other dtypes. On the host the first
    case of each kernel of the real ones, in bf16."""
    all_cases, gpu = cases(options), target(options.target)
    few = options.host and options.cases == Options.cases
    numbered = [(k, i, c) for k, found in all_cases.items() for i, c in enumerate(found[:1] if few else found)]

    def row(kernel: str, i: int, case: Case, dtype: str, config: Config, default: bool) -> Row:
        what = "" if default else " " + " ".join(f"{k}={v}" for k, v in config.items())
        return {
            "id": f"{kernel} {i} {dtype}{what}",
            "kernel": kernel,
            "case": i,
            "name": case.name,
            "dtype": dtype,
            "config": dict(config),
            "default": default,
        }

    found = [row(k, i, c, "bf16", c.kernel.default(c.dims, gpu), True) for k, i, c in numbered]
    if options.host:
        return found
    varied = [(k, i, c) for k, i, c in numbered if i < VARIED_CASES]
    found += [row(k, i, c, "bf16", config, False) for k, i, c in varied for config in variants(c, gpu)]
    return found + [row(k, i, c, d, c.kernel.default(c.dims, gpu), True) for d in DTYPES[1:] for k, i, c in numbered]


def variants(case: Case, gpu: Any, count: int = VARIANTS) -> list[Config]:
    """Configurations that differ from the default in one or two knobs, the same ones each time."""
    kernel, default = case.kernel, case.kernel.default(case.dims, gpu)
    knobs = [k for k, values in kernel.space.items() if set(values) - {default[k]}]
    rng = random.Random(f"{kernel.name} {case.name}")
    found: list[Config] = []
    for _ in range(8 * count):
        changed = rng.sample(knobs, min(len(knobs), rng.choice((1, 1, 2))))
        config = {**default, **{k: rng.choice([v for v in kernel.space[k] if v != default[k]]) for k in changed}}
        if config not in (default, *found):
            found.append(config)
    return found[:count]


def requests(options: Options, rows: Iterable[Row]) -> Iterator[tuple[Request, Kernel]]:
    """What has to be compiled for ``rows``."""
    known = cases(options)
    for row in rows:
        case = known[row["kernel"]][row["case"]]
        yield request(case.kernel, case.dims, row["config"], row["dtype"]), case.kernel


def start(options: Options) -> State:
    return open_device(target(options.target), options.host), cases(options)


def sound(state: State) -> None:
    state[0].fence()


def run(state: State, item: Row) -> Row:
    device, known = state
    case = known[item["kernel"]][item["case"]]
    try:
        device.code(case.kernel, case.dims, item["config"], item["dtype"])
    except Refused as e:
        needed = item["default"] and item["dtype"] in ENGINES
        return {"status": ERROR if needed else REFUSED, "reason": str(e)[:600]}
    seed = time.time_ns() % (1 << 62)
    try:
        errors = check(case, item["dtype"], item["config"], Guarded(device), seed)
    except Violation as e:
        return {"status": WRONG, "reason": str(e), "seed": seed}
    worst = max(errors, key=lambda e: e.l2 / (e.limit_l2 or 1.0))
    row: Row = {"status": OK, "l2": worst.l2, "limit": worst.limit_l2}
    failed = [e for e in errors if not e.passed]
    if failed:
        row |= {"status": WRONG, "seed": seed, "errors": [vars(e) for e in failed]}
        row["reason"] = "; ".join(map(str, failed))
    return row


def summary(rows: list[Row]) -> dict[str, Any]:
    """By kernel: how many rows of each status, and the largest part of its limit that an error is."""
    found: dict[str, Any] = {}
    for kernel in dict.fromkeys(r["kernel"] for r in rows):
        mine = [r for r in rows if r["kernel"] == kernel]
        parts = [r["l2"] / r["limit"] for r in mine if r.get("limit")]
        found[kernel] = {**Counter(r["status"] for r in mine), "worst": max(parts, default=0.0)}
    return found
