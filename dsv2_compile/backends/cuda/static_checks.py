"""What cannot launch on a target is refused before anything tries to; what can is described."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dsv2_compile.backends.cuda.disassembly import Usage
from dsv2_compile.kernels.gpu.aot import ALIGNMENT, Cubin, Job
from dsv2_compile.targets import Architecture, Target

_PTX_TYPES = {"i1": "u8", "i8": "u8", "i16": "u16", "i32": "u32", "i64": "u64", "fp32": "f32", "fp64": "f64"}
_ITEM_BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)")
_THREADS = re.compile(r"\.reqntid\s+(\d+)")
_WRITE = re.compile(r"\b(?:st|red|atom)(?:\.\w+)*\.global\b|\bcp(?:\.\w+)*\.bulk(?:\.\w+)*\.global\.")
_WARP, _PARTITIONS = 32, 4


@dataclass(frozen=True)
class Report:
    """``problems``: why it cannot launch. ``spills``: bytes of stack per thread. ``matrix``: the strongest matrix
    instruction or none. ``blocks_per_sm``: by formula, 0 if it cannot launch."""

    problems: tuple[str, ...]
    spills: int
    matrix: str
    blocks_per_sm: int


def check(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Report:
    """``job`` is what ``cubin`` was made from, ``usage`` what was read from it."""
    problems = tuple(p for rule in RULES for p in rule(cubin, usage, job, target))
    matrix = usage.matrix[0][0] if usage.matrix else "none"
    blocks = 0 if problems else blocks_per_sm(cubin, usage, target.architecture)
    return Report(problems, usage.stack, matrix, blocks)


def blocks_per_sm(cubin: Cubin, usage: Usage, arch: Architecture) -> int:
    """Blocks that fit an SM at once: by threads, registers, shared and tensor memory. The rule is that of the CUDA
    occupancy calculator: registers belong to one of four partitions, to which warps are dealt in turn."""
    warps = _round_up(cubin.warps, _PARTITIONS)
    lot = _round_up(max(usage.registers, 1) * _WARP, arch.register_unit)
    limits = [
        arch.blocks_per_sm,
        arch.threads_per_sm // (cubin.warps * _WARP),
        arch.registers_per_sm // _PARTITIONS // lot * _PARTITIONS // warps,
        arch.shared_per_sm // _round_up(_shared(cubin, usage, arch) + arch.shared_reserved, arch.shared_unit),
    ]
    if cubin.tensor_memory:
        limits.append(arch.tensor_memory // cubin.tensor_memory)
    return min(limits)


def _architecture(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    if usage.architecture != target.capability:
        yield f"the cubin is for {usage.architecture}, {target.name} is {target.capability}"


def _dtypes(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    for kind in dict.fromkeys(k.removeprefix("*") for _, k in job.signature):
        dtype = "fp8" if kind.startswith("fp8") else kind
        if dtype in ("fp8", "bf16", "fp16") and dtype not in target.architecture.dtypes:
            yield f"{kind} is not supported on {target.name} ({target.capability})"


def _threads(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    threads, limit = cubin.warps * _WARP, target.architecture.threads_per_block
    if threads > limit:
        yield f"{threads} threads per block, {target.name} allows {limit}"
    declared = _THREADS.search(cubin.ptx)
    if declared and int(declared[1]) != threads:
        yield f"the entry wants {declared[1]} threads per block, the launch gives {threads}"


def _registers(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    arch = target.architecture
    if usage.registers > arch.registers_per_thread:
        yield f"{usage.registers} registers per thread, {target.name} allows {arch.registers_per_thread}"
    needed = _round_up(cubin.warps, _PARTITIONS) * _round_up(usage.registers * _WARP, arch.register_unit)
    if needed > arch.registers_per_sm:
        yield f"{needed} registers per block, {target.name} has {arch.registers_per_sm} per SM"


def _shared_memory(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    needed, limit = _shared(cubin, usage, target.architecture), target.architecture.shared_per_block
    if needed > limit:
        yield f"{needed} bytes of shared memory per block, {target.name} allows {limit}"


def _tensor_memory(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    limit = target.architecture.tensor_memory
    if cubin.tensor_memory > limit:
        yield f"{cubin.tensor_memory} columns of tensor memory per block, {target.name} has {limit}"


def _writes(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    """A body that was found impossible is compiled to a trap without an error, for one where the tiles take more
    tensor memory than there is."""
    if not _WRITE.search(cubin.ptx):
        yield f"no instruction of {cubin.symbol} writes global memory: the compiler left nothing of its body"


def _parameters(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    """Arguments in order, then the two scratch pointers that Triton appends."""
    entries = _ENTRY.findall(cubin.ptx)
    if [name for name, _ in entries] != [cubin.symbol]:
        yield f"entries {', '.join(n for n, _ in entries) or 'none'} in the PTX, expected {cubin.symbol} alone"
        return
    found = _PARAMETER.findall(entries[0][1])
    wanted = ["u64" if k.startswith("*") else _PTX_TYPES.get(k, k) for _, k in job.signature] + ["u64", "u64"]
    if len(found) != len(wanted):
        yield f"the entry has {len(found)} parameters, {len(wanted)} expected ({len(wanted) - 2} and 2 of scratch)"
    names = [*(n for n, _ in job.signature), "scratch", "profile scratch"]
    for name, have, want in zip(names, found, wanted, strict=False):
        if have != want:
            yield f"parameter {name} is .{have} in the PTX, .{want} expected"
    if cubin.profile_scratch:
        yield f"{cubin.profile_scratch} bytes of profile scratch per block, 0 expected"


def _alignment(cubin: Cubin, usage: Usage, job: Job, target: Target) -> Iterator[str]:
    """Accesses wider than what is claimed trap. Which pointer an access belongs to cannot be seen in a cubin: one
    claimed pointer excuses all accesses of up to 16 bytes."""
    pointers = {n: k.removeprefix("*") for n, k in job.signature if k.startswith("*")}
    claimed = [n for n in pointers if n in job.aligned]
    natural = max((_ITEM_BYTES.get(k, 1) for k in pointers.values()), default=0)
    limit = ALIGNMENT if claimed else natural
    if usage.widest > limit:
        yield f"accesses of {usage.widest} bytes, the pointers are claimed to be multiples of {limit}"


Rule = Callable[[Cubin, Usage, Job, Target], Iterator[str]]
RULES: tuple[Rule, ...] = (
    _architecture, _dtypes, _threads, _registers, _shared_memory, _tensor_memory, _writes,
    _parameters, _alignment,
)  # fmt: skip


def _shared(cubin: Cubin, usage: Usage, arch: Architecture) -> int:
    """Bytes per block without the reserved ones, which ptxas counts as static from sm_90 on."""
    reserved = arch.shared_reserved if arch.number >= 90 else 0
    return cubin.shared + max(usage.shared - reserved, 0)


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
