"""What the model of a kernel's time needs to know of its code: read from a cubin, or guessed without compiling."""

from __future__ import annotations

from dataclasses import dataclass

from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.kernels.gpu.kernel import Config, Work
from dsv2_compile.targets import Architecture, Target

WARP = 32
_COPY = 16
"""Bytes that a lane loads at once where it can."""
_MMA = 2 * 16 * 8 * 16
"""FLOP of a matrix instruction of one warp on 2-byte types; it adds to 128 accumulators."""
_PARTITIONS = 4
BY_WARPGROUPS = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}
"""Matrix instructions that take operands from shared memory; with 64 rows and 4 warps at least."""
_MOST_SUMS = 216
"""Accumulators of a thread, of 255 registers, above which something has to be spilled."""


@dataclass(frozen=True)
class Code:
    """``blocks_per_sm``: how many fit at once. ``matrix``: opcode of its matrix instructions or none. ``ahead``: tiles
    that are being loaded while one is computed; 0: its loop waits for every tile.

    Of one turn of the main loop, for a warp: ``instructions`` and of them ``fma``, ``alu``, ``special``, ``products``
    (matrix instructions), ``barriers``, ``spills``; ``shared``: bytes from and to shared memory, operands of matrix
    instructions included; ``flops`` of matrix instructions; ``dependent``: matrix instructions that wait for one
    another. ``outside``: instructions beside the loop."""

    warps: int
    blocks_per_sm: int
    matrix: str
    ahead: int
    instructions: float
    fma: float
    alu: float
    special: float
    products: float
    barriers: float
    spills: float
    shared: float
    flops: float
    dependent: float
    outside: float


def read(work: Work, config: Config, built: Compiled, itemsize: int) -> Code:
    """From ``built``, which can be launched. How many steps of ``work`` a turn of its loop does is seen from the
    bytes that it loads, and the FLOP where they say less: small tiles are loaded or multiplied more than once."""
    assert built.usage is not None and built.report is not None and built.cubin is not None
    loop, code, warps = dict(built.usage.loop), dict(built.usage.code), built.cubin.warps
    tile = (work.shared or work.loaded / work.steps) * itemsize / 2
    loaded = (loop.get("global_bytes", 0) + loop.get("async_bytes", 0)) * warps
    ratios = [loaded / tile if tile else 0.0]
    if work.matrix and loop.get("flops"):
        ratios.append(loop["flops"] * warps * work.steps / work.flops)
    if not loop or work.steps == 1:
        loop, turns = code, float(work.steps)
        outside = 0
    else:
        turns = float(max(1, round(min(ratios))))
        outside = code["instructions"] - loop["instructions"]
    each = {name: value / turns for name, value in loop.items()}
    matrix = built.report.matrix
    products = each.get("matrix", 0.0)
    flops = each.get("flops", 0.0) or (work.flops / work.steps / warps if work.matrix and matrix != "none" else 0.0)
    copies = "async" in loop and loop is not code
    return Code(
        warps=warps,
        blocks_per_sm=max(1, built.report.blocks_per_sm),
        matrix=matrix,
        ahead=max(0, config["num_stages"] - 1 - work.address_stages) if copies else 0,
        instructions=each["instructions"],
        fma=each.get("fma", 0.0),
        alu=each.get("alu", 0.0),
        special=each.get("special", 0.0),
        products=products,
        barriers=each.get("barrier", 0.0),
        spills=each.get("local", 0.0),
        shared=each.get("shared_bytes", 0.0) + each.get("operand_bytes", 0.0) + each.get("async_bytes", 0.0),
        flops=flops,
        dependent=_dependent(products, work, warps) if matrix not in BY_WARPGROUPS.values() else 0.0,
        outside=outside,
    )


def guess(work: Work, config: Config, target: Target, itemsize: int) -> Code | None:
    """None where shared memory or registers cannot hold what has to be in them. Rules of thumb, taken from what
    Triton 3.7 makes of these kernels."""
    arch, warps, stages = target.architecture, config["num_warps"], config["num_stages"]
    threads = warps * WARP
    products = work.matrix and itemsize == 2
    group = BY_WARPGROUPS.get(arch.capability, "") if products and work.side >= 64 and warps >= 4 else ""
    matrix = group or ("HMMA" if products else "none")
    in_tensor_memory = group == "UTCHMMA"
    per_thread = work.sums / threads
    if threads > arch.threads_per_block:
        return None
    if work.sums > (128 * arch.tensor_memory if in_tensor_memory else _MOST_SUMS * threads):
        return None
    pipelined = work.matrix and stages > 1 and work.steps > 1
    buffers = max(1, stages - (not group)) if pipelined else 1
    shared = buffers * work.shared * itemsize // 2
    if shared > arch.shared_per_block:
        return None
    tile = (work.shared or work.loaded / work.steps) * itemsize / 2
    copies = max(1.0, tile / (_COPY * threads))
    step_flops = work.flops / work.steps
    vector = work.vector / work.steps / threads
    flops, count, dependent, fma, traffic = 0.0, 0.0, 0.0, vector / 2, 0.0
    instructions, alu = vector + 4 * copies, vector / 2 + 2 * copies
    if group:
        depth, rows = step_flops / (2 * work.sums), work.side / 64
        flops, count = step_flops / warps, max(1.0, depth / 16)
        traffic = 2 * depth * (work.side + work.sums / work.side * rows) / warps
        if work.held:
            # warp groups without rows of their own all make the scores; keys are read for them and for the values
            again = max(1.0, warps / 4 / rows)
            flops *= (1 + again) / 2
            traffic = ((rows * tile + work.held) * again + rows * tile) / warps
        instructions += count + 50
    elif products:
        dependent = step_flops / (2 * work.sums) / 16
        count = dependent * max(1.0, work.sums / (128 * warps))
        flops, traffic = count * _MMA, 384 * count
        instructions += 1.8 * count + 50
        alu += 20
    else:
        fma = step_flops / (2 * threads)
        alu += 1.6 * fma * (2 / itemsize)
        instructions += 3 * fma + 10
    registers = _registers(work, matrix, threads) + (0 if pipelined or not products else round(tile / threads / 4))
    if products:
        traffic += tile / warps
    return Code(
        warps=warps,
        blocks_per_sm=_blocks_per_sm(
            arch,
            warps,
            _registers(work, matrix, threads),
            buffers * work.shared * itemsize // 2 + bool(group) * work.held,
        ),
        matrix=matrix,
        ahead=max(0, stages - 1 - work.address_stages) if pipelined else 0,
        instructions=instructions,
        fma=fma,
        alu=alu,
        special=vector / 12,
        products=count,
        barriers=4.0 if work.matrix else 0.0,
        spills=2.0 * max(0, registers - arch.registers_per_thread),
        shared=traffic,
        flops=flops,
        dependent=dependent,
        outside=200 + 3 * per_thread,
    )


def _dependent(products: float, work: Work, warps: int) -> float:
    return products / max(1.0, work.sums / (128 * warps))


def _registers(work: Work, matrix: str, threads: int) -> int:
    """Of a thread."""
    sums = work.sums / threads * (0.5 if matrix == "UTCHMMA" else 1.0)
    return round(36 + sums + work.vector / work.steps / threads / 24)


def _blocks_per_sm(arch: Architecture, warps: int, registers: int, shared: int) -> int:
    """`static_checks.blocks_per_sm` of guesses; 1 at least."""
    lot = -(-registers * WARP // arch.register_unit) * arch.register_unit
    dealt = -(-warps // _PARTITIONS) * _PARTITIONS
    return max(
        1,
        min(
            arch.blocks_per_sm,
            arch.threads_per_sm // (warps * WARP),
            arch.registers_per_sm // _PARTITIONS // lot * _PARTITIONS // dealt,
            arch.shared_per_sm // (shared + arch.shared_reserved),
        ),
    )
