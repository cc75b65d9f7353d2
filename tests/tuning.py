"""Tasks and judges for tests of the sweep. Nothing here is measured or compiled."""

from __future__ import annotations

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.record import PREDICTED, key_of
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.tasks import Task
from dsv2_compile.autotune.trial import OK, REFUSED, Confirmed, Trial
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call
from dsv2_compile.targets import target

H800 = target("h800")
NORM = {"N": 2048, "X_STRIDE": 2048, "EPS": 1e-6, "RESIDUAL": False, "INDEXED": False}
LINEAR = {"N": 512, "K": 1024, "X_STRIDE": 1024, "OUT_STRIDE": 512, "INDEXED": False}


def call(kernel, dims, **sizes):
    return Call.of(KERNELS[kernel], dims, sizes, "bf16")


def norm(rows=8, **dims):
    return call("rms_norm", NORM | dims, rows=rows)


def linear(rows=8, **dims):
    return call("linear", LINEAR | {"ROWS_HINT": rows} | dims, rows=rows)


def task(c, gpu=H800, triton="3.7.1", ptxas="p"):
    kernel = KERNELS[c.kernel]
    default = kernel.default(dict(c.dims), gpu)
    pointers = tuple(n for n, kind in kernel.args.items() if kind.startswith("*"))
    return Task(key_of(c, gpu.name, triton, ptxas), c, pointers, 1, "a test", pairs(default))


class Judge:
    """``time(config)``: microseconds, None for what is refused. ``seen``: all it was asked for, in order."""

    provenance, device = PREDICTED, ""

    def __init__(self, time, on_trial=lambda: None):
        self.time, self.on_trial, self.seen = time, on_trial, []

    def judge(self, task, configs):
        for config in configs:
            self.on_trial()
            self.seen.append((task.key, pairs(config)))
            found = self.time(config)
            yield Trial(config, REFUSED, reason="told so") if found is None else Trial(config, OK, found)

    def confirm(self, task, ranked, default):
        return Confirmed(ranked[0] if ranked else None, ("none",))
