"""Kernels to cubins that are known to be launchable: many at once, from the cache where they are in it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from dsv2_compile.backends.cuda.build_cache import BuildCache, Built, key
from dsv2_compile.backends.cuda.disassembly import Usage
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.backends.cuda.pool import Failed, Pool, Runner
from dsv2_compile.backends.cuda.static_checks import Report, check
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.errors import UsageError
from dsv2_compile.kernels.gpu.aot import Cubin, Job, job
from dsv2_compile.kernels.gpu.kernel import KERNELS, Config, Dims, Kernel
from dsv2_compile.progress import Progress, silent
from dsv2_compile.targets import Target


@dataclass(frozen=True)
class Compiled:
    """``reason``: why it cannot be launched, empty if it can; ``log``: what a compiler that failed has printed;
    ``crashed``: it ended or hung.
    ``cubin``, ``usage`` and ``report`` are there unless compiling failed. ``seconds``: processor time of
    compiling, in another run if ``cached``."""

    request: Request
    cubin: Cubin | None = None
    usage: Usage | None = None
    report: Report | None = None
    reason: str = ""
    log: str = ""
    crashed: bool = False
    seconds: float = 0.0
    cached: bool = False

    @property
    def ok(self) -> bool:
        return not self.reason


def request(
    kernel: Kernel, dims: Dims, config: Config, dtype: str, aligned: Mapping[str, bool] | None = None
) -> Request:
    """``aligned``: arguments that are multiples of 16, None for all pointers."""
    claims = {n: k.startswith("*") for n, k in kernel.args.items()} if aligned is None else aligned
    return Request(
        kernel.name,
        tuple(sorted(dims.items())),
        tuple(sorted(config.items())),
        dtype,
        tuple(n for n in kernel.args if claims.get(n)),
    )


def compile_all(
    requests: Sequence[Request],
    target: Target,
    *,
    workers: int | None = None,
    cache: BuildCache | None = None,
    timeout: float = 600.0,
    progress: Progress = silent,
    kernels: Mapping[str, Kernel] = KERNELS,
) -> list[Compiled]:
    """Compile and check ``requests``, in their order; equal ones once.

    In ``workers`` processes, None for one a CPU, that may take ``timeout`` seconds for a kernel. See `compile_each`.
    """
    done: dict[Request, Compiled] = {}
    count = len(set(requests))
    with Pool(workers, timeout) as pool, closing(compile_each(requests, target, pool, cache, kernels)) as results:
        for result in results:
            done[result.request] = result
            progress(result.request.kernel, len(done), count)
    return [done[r] for r in requests]


def compile_each(
    requests: Sequence[Request],
    target: Target,
    runner: Runner,
    cache: BuildCache | None = None,
    kernels: Mapping[str, Kernel] = KERNELS,
) -> Generator[Compiled, None, None]:
    """Compile and check ``requests`` with ``runner``; equal ones once, as they come.

    A kernel that fails, hangs, crashes its compiler or cannot be launched costs nothing but itself: see ``reason``.
    Raises UsageError for a name that is no kernel, IncompatibleError if nothing can be compiled here.
    """
    if unknown := sorted({r.kernel for r in requests} - kernels.keys()):
        raise UsageError(f"unknown kernels: {', '.join(unknown)}", f"known are {', '.join(kernels)}")
    compilers, cache = toolchain(target), cache or BuildCache()
    jobs: dict[str, Job] = {}
    askers: dict[str, list[Request]] = {}
    for r in dict.fromkeys(requests):
        try:  # the kernel's own functions run here
            dims, config, claims = dict(r.dims), dict(r.config), dict.fromkeys(r.aligned, True)
            work = job(kernels[r.kernel], dims, config, r.dtype, target, claims)
            digest = key(work, compilers)
        except Exception as e:
            yield Compiled(r, reason=f"{type(e).__name__}: {e}")
            continue
        if built := cache.get(digest):
            yield _checked(r, built, work, target, cached=True)
        else:
            jobs[digest] = work
            askers.setdefault(digest, []).append(r)

    digests = list(jobs)
    with closing(runner.run(list(jobs.values()))) as outcomes:
        for index, outcome in outcomes:
            digest = digests[index]
            if isinstance(outcome, Built):
                cache.put(digest, outcome)
            for r in askers[digest]:
                if isinstance(outcome, Failed):
                    yield Compiled(r, reason=outcome.reason, log=outcome.log, crashed=outcome.crashed)
                else:
                    yield _checked(r, outcome, jobs[digest], target, cached=False)


def _checked(request: Request, built: Built, job: Job, target: Target, cached: bool) -> Compiled:
    report = check(built.cubin, built.usage, job, target)
    return Compiled(
        request, built.cubin, built.usage, report, "; ".join(report.problems), seconds=built.seconds, cached=cached
    )
