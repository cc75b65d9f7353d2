"""Compiles kernels ahead of time: Triton source to a cubin for a named GPU, with no GPU.

A `Job` is all that decides the bytes of a cubin, as plain data: a process that has only Triton can build it. No
line information is kept, since it holds the paths of the source tree.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dsv2_compile.targets import Target

if TYPE_CHECKING:
    from dsv2_compile.kernels.gpu.kernel import Config, Dims, Kernel

ALIGNMENT = 16
"""What a claim says: the pointer, in bytes, or the integer is a multiple of it."""

Named: TypeAlias = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Job:
    """``source``: digest of the function with all it calls. ``signature``: run-time arguments in order, name and
    Triton type. ``constants``: all others of the source. ``aligned``: arguments claimed to be multiples of
    `ALIGNMENT`."""

    module: str
    function: str
    source: str
    signature: tuple[tuple[str, str], ...]
    constants: Named
    options: Named
    aligned: tuple[str, ...]
    capability: str


@dataclass(frozen=True)
class Cubin:
    """``symbol``: the entry point. ``shared``: bytes per block. ``warps``: per block, after warp specialisation.
    ``scratch``, ``profile_scratch``: bytes per block of the two pointers behind the arguments.
    ``tensor_memory``: columns per block."""

    image: bytes
    ptx: str
    symbol: str
    shared: int
    warps: int
    scratch: int
    scratch_align: int
    profile_scratch: int
    tensor_memory: int


def job(
    kernel: Kernel, dims: Dims, config: Config, dtype: str, target: Target, aligned: Mapping[str, bool] | None = None
) -> Job:
    """``dtype``: of T, in Triton's names (bf16, fp16, fp32). ``aligned``: arguments that are multiples of 16,
    None for all pointers. Raises ValueError for a claim about no argument and for constants that are not plain."""
    claims = {n: k.startswith("*") for n, k in kernel.args.items()} if aligned is None else aligned
    constants = kernel.constants(dims, config)
    odd = [n for n, v in constants.items() if not isinstance(v, int | float)]
    odd += [n for n in claims if n not in kernel.args]
    if odd:
        raise ValueError(f"kernel {kernel.name}: no plain constant or no argument: {', '.join(odd)}")
    return Job(
        module=kernel.fn.__module__,
        function=kernel.fn.__name__,
        source=kernel.fn.cache_key,
        signature=tuple((n, f"*{dtype}" if k == "*T" else k) for n, k in kernel.args.items()),
        constants=tuple(sorted(constants.items())),
        options=(*kernel.options(config).items(), ("enable_fp_fusion", True)),
        aligned=tuple(n for n in kernel.args if claims.get(n)),
        capability=target.architecture.capability,
    )


def build(job: Job) -> Cubin:
    """Compile; nothing is taken from Triton's own cache. Raises what the compiler raises, and ValueError if the source
    is no longer what the job was made from."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(job.module), job.function)
    if function.cache_key != job.source:
        raise ValueError(f"the source of {job.function} has changed since the build began")
    source = ASTSource(
        function,
        signature={**dict(job.signature), **{n: "constexpr" for n, _ in job.constants}},
        constexprs=dict(job.constants),
        attrs={(i,): [["tt.divisibility", ALIGNMENT]] for i, (n, _) in enumerate(job.signature) if n in job.aligned},
    )
    gpu = GPUTarget("cuda", int(job.capability.removeprefix("sm_")), 32)
    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as folder, knobs.compilation.scope(), knobs.cache.scope():
        knobs.compilation.disable_line_info = True
        knobs.cache.dir = folder
        built = triton.compile(source, target=gpu, options=dict(job.options))
        m, image, ptx = built.metadata, built.asm["cubin"], built.asm["ptx"]
    return Cubin(
        image=image,
        ptx=ptx,
        symbol=m.name,
        shared=m.shared,
        warps=m.num_warps,
        scratch=m.global_scratch_size,
        scratch_align=m.global_scratch_align,
        profile_scratch=m.profile_scratch_size,
        tensor_memory=m.tmem_size or 0,
    )
