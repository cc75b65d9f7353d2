"""What there is to tune for a model on a target: every kernel its programs call, at the sizes they call it with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsv2_compile.autotune.record import Key, key_of
from dsv2_compile.backends.cuda.draft import Draft
from dsv2_compile.backends.cuda.toolchain import toolchain
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Kernel
from dsv2_compile.targets import Target


@dataclass(frozen=True)
class Task:
    """``aligned``: arguments that every launch claims to be multiples of 16. ``count``: launches of it in all
    programs. ``what``: what one of them is for. ``config``: what the programs launch it with."""

    key: Key
    call: Call
    aligned: tuple[str, ...]
    count: int
    what: str
    config: tuple[tuple[str, int], ...]

    @property
    def kernel(self) -> Kernel:
        return KERNELS[self.call.kernel]


def tasks_of(drafts: Iterable[Draft], target: Target) -> list[Task]:
    """Each call once, in the order of the programs."""
    compilers = toolchain(target)
    found: dict[Key, Task] = {}
    for draft in drafts:
        for launch in draft.launches:
            kernel = KERNELS[launch.request.kernel]
            call = draft.call(kernel, dict(launch.request.dims), launch.sizes)
            key = key_of(call, target.name, compilers.triton, compilers.ptxas)
            known = found.get(key)
            aligned = tuple(n for n in launch.request.aligned if known is None or n in known.aligned)
            count = 1 + (known.count if known else 0)
            found[key] = Task(key, call, aligned, count, launch.what, launch.request.config)
    return list(found.values())
