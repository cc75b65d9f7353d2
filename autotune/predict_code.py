"""What the model of a kernel's time needs to know of its code: read from a cubin, or guessed without compiling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.kernels.gpu.kernel import Config
from dsv2_compile.kernels.gpu.work import Work
from dsv2_compile.targets import Architecture, Target

WARP = 32
_COPY = 16
"""Bytes that a lane loads at once where it can."""
_MMA = 2 * 16 * 8 * 16
"""FLOP of a matrix instruction of one warp on 2-byte types."""
_TILE = 128
"""Accumulators of a matrix instruction of one warp."""
_SOFTMAX = 12
"""Elementwise operations a score: scale, mask, maximum, difference, exponential, sum, conversion."""
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
    # every lane loads something
    tile = max(_tile(work, itemsize), 4.0 * WARP * warps)
    loaded = (loop.get("global_bytes", 0) + loop.get("async_bytes", 0)) * warps
    ratios = [loaded / tile]
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
        ahead=max(0, min(config["num_stages"] - 1, work.most_ahead) - work.address_stages) if copies else 0,
        instructions=each["instructions"],
        fma=each.get("fma", 0.0),
        alu=each.get("alu", 0.0),
        special=each.get("special", 0.0),
        products=products,
        barriers=each.get("barrier", 0.0),
        spills=each.get("local", 0.0),
        shared=each.get("shared_bytes", 0.0) + each.get("operand_bytes", 0.0) + each.get("async_bytes", 0.0),
        flops=flops,
        dependent=0.0 if matrix in ("none", *BY_WARPGROUPS.values()) else _dependent(work),
        outside=outside,
    )


def guess(work: Work, config: Config, target: Target, itemsize: int) -> Code | None:
    """None where shared memory or registers cannot hold what has to be in them, and for stages of a loop without matrix
    products: Triton pipelines none, and with one stage the code is the same. Rules of thumb, taken from what Triton 3.7
    makes of these kernels."""
    arch, warps, stages = target.architecture, config["num_warps"], config["num_stages"]
    threads, tile = warps * WARP, _tile(work, itemsize)
    on_matrix_units = work.matrix and itemsize == 2
    group = BY_WARPGROUPS.get(arch.capability, "") if on_matrix_units and work.side >= 64 and warps >= 4 else ""
    in_tensor_memory = group == "UTCHMMA"
    if threads > arch.threads_per_block or (stages > 1 and not work.matrix):
        return None
    if work.looped and work.sums > (128 * arch.tensor_memory if in_tensor_memory else _MOST_SUMS * threads):
        return None
    pipelined = work.matrix and stages > 1 and work.looped
    ahead = min(stages - 1, work.most_ahead) if pipelined else 0
    buffers = ahead + bool(group) if pipelined else 1
    shared = (buffers * work.shared + work.held) * itemsize // 2
    # tiles that are not loaded ahead may follow one another in one place
    if shared - (0 if pipelined else work.shared // 2) > arch.shared_per_block:
        return None

    copies, sums = max(1.0, tile / (_COPY * threads)), work.sums / threads
    products = _multiplied(work, warps, bool(group)) if on_matrix_units else _NOTHING
    scores = work.scores * products.again / threads
    vector = work.vector / work.steps / threads + (_SOFTMAX * scores + sums if work.scores else 0.0)
    fma, alu, instructions = vector / 2, vector / 2 + 2 * copies, vector + 4 * copies
    registers = 28 + sums * (1.5 if in_tensor_memory else 1.07)
    if on_matrix_units:
        instructions += (3.5 if group else 1.8) * products.count + 50
        alu += 20
        registers += (1.5 * scores + 2 * copies if work.scores else 0) + (0 if pipelined else 0.15 * tile / threads)
        # fragments of the queries, if all fit; each warp has 16 of their rows at least
        registers += 0 if group else work.held / 256 * max(16 / max(work.side, 16), 1 / warps)
    else:
        elements = work.flops / work.steps / (2 * threads)
        fma, instructions = fma + elements, instructions + 3 * elements + 10
        alu += 1.6 * elements * (2 / itemsize)
        registers += 8 * work.looped
    return Code(
        warps=warps,
        blocks_per_sm=_blocks_per_sm(arch, warps, min(round(registers), arch.registers_per_thread), shared),
        matrix=group or ("HMMA" if on_matrix_units else "none"),
        ahead=max(0, ahead - work.address_stages),
        instructions=instructions,
        fma=fma,
        alu=alu,
        special=vector / _SOFTMAX,
        products=products.count,
        barriers=4.0 if work.matrix else 0.0,
        spills=2.0 * max(0.0, registers - arch.registers_per_thread),
        shared=products.traffic + (tile / warps if on_matrix_units else 0.0),
        flops=products.flops,
        dependent=_dependent(work) if on_matrix_units and not group else 0.0,
        outside=200 + 3 * sums,
    )


@dataclass(frozen=True)
class _Multiplied:
    """Of a warp in a step: FLOP, instructions and bytes of operands from shared memory. ``again``: how often the same
    is multiplied, where there are more warps than rows for them."""

    flops: float
    count: float
    traffic: float
    again: float


_NOTHING = _Multiplied(0.0, 0.0, 0.0, 1.0)


def _multiplied(work: Work, warps: int, by_warpgroups: bool) -> _Multiplied:
    flops = count = traffic = 0.0
    most = 1.0
    rows, groups = max(1.0, work.side / 64), warps / 4
    for outputs, depth in _products(work):
        scores = outputs == work.scores
        if by_warpgroups:
            # the warp groups share the columns of sums, but not of scores; probabilities are in registers
            again = max(1.0, groups / rows) if scores else 1.0
            lines = outputs / work.side * rows + (work.side if scores or not work.scores else 0)
            flops += 2 * outputs * depth * again / warps
            count += depth / 16 * max(1.0, rows / groups)
            traffic += 2 * depth * lines * again / warps
        else:
            again = max(1.0, _TILE * warps / outputs)
            tiles = outputs * again / (_TILE * warps)
            flops += depth / 16 * tiles * _MMA
            count += depth / 16 * tiles
            # fragments of a square of tiles
            traffic += depth / 16 * 768 * math.sqrt(tiles)
        most = max(most, again)
    return _Multiplied(flops, count, traffic, most)


def _tile(work: Work, itemsize: int) -> float:
    """Bytes that a turn of the main loop loads."""
    return work.tile or (work.shared or work.loaded / work.steps) * itemsize / 2


def _products(work: Work) -> list[tuple[int, float]]:
    """Matrix products of a step: results and terms of each."""
    rest = work.flops / work.steps - 2.0 * work.scores * work.width
    values = (work.sums, rest / (2 * work.sums))
    return [(work.scores, float(work.width)), values] if work.scores else [values]


def _dependent(work: Work) -> float:
    return sum(depth for _, depth in _products(work)) / 16


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
