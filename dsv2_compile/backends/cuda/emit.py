"""Drafts and compiled kernels to a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from dsv2_compile.backends.cuda.draft import Draft, Request
from dsv2_compile.kernels.gpu.aot import Cubin
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.plan.plan import KernelEntry, Launch, Plan, PlanProgram
from dsv2_compile.targets import Target


def requests(drafts: Iterable[Draft]) -> list[Request]:
    """What the drafts launch, each once, in order."""
    return list(dict.fromkeys(launch.request for draft in drafts for launch in draft.launches))


def entry(request: Request, cubin: Cubin, file: str) -> KernelEntry:
    kernel = KERNELS[request.kernel]
    return KernelEntry(
        kernel=request.kernel,
        cubin=file,
        symbol=cubin.symbol,
        args=tuple(f"*{request.dtype}" if kind == "*T" else kind for kind in kernel.args.values()),
        aligned=tuple(name in request.aligned for name in kernel.args),
        constants=kernel.constants(dict(request.dims), dict(request.config)),
        warps=cubin.warps,
        shared=cubin.shared,
        scratch=cubin.scratch,
        scratch_align=cubin.scratch_align,
    )


def uncompiled(requests: list[Request]) -> dict[Request, KernelEntry]:
    """Entries of kernels that are not compiled: the host needs their constants only."""
    cubin = Cubin(b"", "", "none", 0, 4, 0, 1, 0, 0)
    return {r: entry(r, cubin, f"kernels/{hashlib.sha256(repr(r).encode()).hexdigest()[:16]}") for r in requests}


def plan(
    target: Target,
    dtype: str,
    page: int,
    pages: int,
    drafts: Mapping[tuple[str, str], Draft],
    entries: Mapping[Request, KernelEntry],
) -> Plan:
    """``drafts`` by (name, phase), the smallest program of a phase first."""
    kernels = list({e.cubin: e for e in entries.values()}.values())
    number = {e.cubin: i for i, e in enumerate(kernels)}
    programs = {}
    for (name, phase), draft in drafts.items():
        launches = tuple(Launch(number[entries[x.request].cubin], x.grid, x.args, x.what) for x in draft.launches)
        programs[name] = PlanProgram(phase, draft.limits, draft.buffers, launches, draft.arena_bytes)
    return Plan(target.name, target.capability, dtype, page, pages, tuple(kernels), programs)
