"""Inside a measuring process: answers are checked first, times taken after, and a device that has faulted is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.autotune.measure.jobs import Bench, Compare, Found, Job, Measure, Race, Verify
from dsv2_compile.autotune.measure.speed import Reference
from dsv2_compile.autotune.measure.stats import margin, median, quantiles
from dsv2_compile.autotune.predict import bound
from dsv2_compile.autotune.trial import FAILED, IMPOSSIBLE, OK, REFUSED, WRONG
from dsv2_compile.kernels.gpu.kernel import Call
from dsv2_compile.processes import Failure
from dsv2_compile.runtime.native.driver import OUT_OF_MEMORY, DriverError
from dsv2_compile.targets import Target, target

FEW, MANY = 8, 60
"""Replays that every candidate is timed with, and those beside them of one that is close to the best."""
DRIFT = 0.05
"""By how much the reference kernels may differ from before and from the beginning."""
ATTEMPTS = 3
"""At timing while the device drifts; the last one counts, with a flag."""
PAUSE = 0.2
"""Seconds that a device which drifts is given."""
_REFUSED = frozenset(
    f"CUDA_ERROR_{what}"
    for what in ("INVALID_VALUE", "INVALID_IMAGE", "NO_BINARY_FOR_GPU", "LAUNCH_OUT_OF_RESOURCES", "NOT_SUPPORTED")
)
"""What a driver says of a kernel that it cannot launch; it goes on with others."""


@dataclass(frozen=True)
class Setup:
    """``references``: what the speed of the device is judged by. ``host``: the host in place of the GPU, through the
    interpreter."""

    target: str
    references: Mapping[str, Reference]
    host: bool = False


def start(setup: Setup) -> Callable[[Job], tuple[Found | Failure, bool]]:
    """A worker of `processes`, on the first GPU."""
    from dsv2_compile.autotune.measure.bench import open_bench

    return answering(open_bench(target(setup.target), setup.references, setup.host), target(setup.target))


def answering(bench: Bench, gpu: Target) -> Callable[[Job], tuple[Found | Failure, bool]]:
    """``answer`` of a process that measures on ``bench``. It is the last one if the device has faulted, or if memory is
    short: what earlier jobs have left may be to blame, so that a fresh process has to say."""

    def answer(job: Job) -> tuple[Found | Failure, bool]:
        try:
            found = ANSWERS[type(job)](bench, gpu, job)
        except Exception as e:
            code = e.code if isinstance(e, DriverError) else ""
            reason = _one_line(e) if code else f"{type(e).__name__}: {_one_line(e)}"
            if code == OUT_OF_MEMORY or isinstance(e, MemoryError | torch.OutOfMemoryError):
                return Failure(reason, "", crashed=True), True
            found = Found(REFUSED if code in _REFUSED else FAILED, reason)
        try:
            bench.sound()
        except Exception as e:
            return Failure(f"the GPU has faulted: {_one_line(e)}", "", crashed=True), True
        return found, False

    return answer


def measure(bench: Bench, gpu: Target, job: Measure) -> Found:
    wrong = bench.check(job.subject, seed=0)
    if wrong:
        return Found(WRONG, wrong)
    for left in reversed(range(ATTEMPTS)):
        before = bench.reference()
        times = bench.times(job.subject, FEW)
        if median(times) <= job.close:
            times += bench.times(job.subject, MANY)
        after = bench.reference()
        drift = max(abs(r[n] / t - 1) for n, t in (job.reference or before).items() for r in (before, after))
        if drift <= DRIFT or not left:
            break
        time.sleep(PAUSE)
    low, middle, high = quantiles(times)
    spread = margin(times)
    call = bench.timed(job.subject)
    facts = {
        "bound": bound(call, gpu),
        "p10": low,
        "p90": high,
        "margin": spread,
        "repeats": len(times),
        "attempts": ATTEMPTS - left,
        "reference": before,
        "drift": drift,
        **bench.facts(),
    }
    if drift > DRIFT:
        facts["flag"] = f"the device drifted by {drift:.0%} while this was timed"
    elif facts.get("others"):
        facts["flag"] = f"{facts['others']} other processes computed on the device"
    if reason := impossible(call, gpu, bench, median(times)):
        return Found(IMPOSSIBLE, reason, facts=facts if _finite(low, high, drift, *before.values()) else {})
    if not _finite(low, high, drift, *before.values()):
        return Found(FAILED, f"times that are no numbers: {low:g} to {high:g} us, the device drifted by {drift:g}")
    return Found(OK, "", middle, spread, facts)


def _finite(*values: float) -> bool:
    return all(map(isfinite, values))


def impossible(call: Call, gpu: Target, bench: Bench, microseconds: float) -> str:
    """Why no call can take so little: it is below the roofline of the target, or of the device if that is faster."""
    bandwidth, flops = bench.rates()
    least = bound(call, replace(gpu, bandwidth=max(gpu.bandwidth, bandwidth), flops=max(gpu.flops, flops)))
    if isfinite(microseconds) and microseconds > max(least, 0.0):
        return ""
    return f"{microseconds:.4g} us, the bound is {least:.4g} us"


def verify(bench: Bench, gpu: Target, job: Verify) -> Found:
    for seed in job.seeds:
        if wrong := bench.held_out(job.subject, job.shape, seed):
            return Found(WRONG, f"held-out shape {job.shape}, seed {seed}: {wrong}")
    return Found(OK)


def race(bench: Bench, gpu: Target, job: Race) -> Found:
    wrong, runs = bench.race(job.subject, job.repeats, job.seconds)
    return Found(WRONG if wrong else OK, wrong, facts={"runs": runs})


def compare(bench: Bench, gpu: Target, job: Compare) -> Found:
    """``facts``: the other's ``microseconds`` and ``margin``, and both by round."""
    ours, theirs = list[float](), list[float]()
    for _ in range(job.rounds):
        ours += bench.times(job.subject, FEW)
        theirs += bench.times(job.other, FEW)
    for subject, times in ((job.subject, ours), (job.other, theirs)):
        if reason := impossible(bench.timed(subject), gpu, bench, median(times)):
            return Found(IMPOSSIBLE, reason)
    spread, other = margin(ours), margin(theirs)
    if not _finite(spread, other):
        return Found(FAILED, f"times that are no numbers: they differ by {spread:g} and {other:g} us")
    return Found(OK, "", median(ours), spread, {"microseconds": median(theirs), "margin": other, "rounds": job.rounds})


ANSWERS: dict[type, Callable[[Bench, Target, Any], Found]] = {
    Measure: measure,
    Verify: verify,
    Race: race,
    Compare: compare,
}


def _one_line(e: Exception) -> str:
    return " ".join(str(e).split())[:400]
