"""How long a kernel should take on a target that is not there: a model, not a measurement.

`predict` reads what the compiler made (registers, shared memory, matrix instructions, the main loop's instructions),
`estimate` guesses that; both then ask the same model. Its constants are published ones, named where they stand and in
`dsv2_compile.targets`, or guesses that say so; one alone, `HALF_LINE`, this project has measured.

The model: the busiest SM runs its blocks one round after the other, as many at once as fit. That takes at least

- ``dram``: the bytes of the call, and what falls out of L2 and is read again, over bandwidth,
- ``l2``: bytes that blocks ask of L2 and give to it, over its bandwidth or over that of the busiest SM's port,
- ``matrix``, ``issue``, ``shared``: the busiest SM's FLOP on matrix units of the kind that is used, its instructions
  over schedulers and pipes, its bytes over the port of shared memory,
- ``latency``: rounds of blocks that are alone with themselves. A turn of the main loop takes what its instructions
  take, or its share of a tile's way from memory if tiles are loaded ahead, or both. Little's law is in this: with few
  blocks and few tiles ahead, too few bytes are on their way and this is the longest.

They overlap, but not wholly: their fourth powers add up. Before them come ``launch`` and ``start``, until the first
block computes; after them ``follower``, a kernel that the configuration needs (`Kernel.then`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from dsv2_compile.autotune.predict_code import BY_WARPGROUPS, WARP, Code, guess, read
from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config
from dsv2_compile.kernels.gpu.work import Work
from dsv2_compile.plan.dtypes import ITEM_BYTES
from dsv2_compile.targets import Target

VERSION = 4
"""Of the model. Records of another version are compared with nothing."""

LAUNCH = 1.3
"""Microseconds between two launches of a CUDA graph on an h100: Hazy Research, "No Bubbles", May 2025."""
DRAM_SHARE = 0.92
"""Of the sheet's bandwidth: FlashMLA's 3000 of 3350 GB/s on an h800 leave this before what overlaps badly."""
MATRIX_SHARE = 0.875
"""Of the sheet's rate: 865 of 989 TFLOP/s are left after throttling, FlashMLA's notes of April 2025."""
ISSUE_SHARE = 0.8
"""Of the slots of schedulers. A guess."""
LINE = 128
"""Bytes of a line of L2."""
HALF_LINE = 0.62
"""Of the bandwidth, for a stream of which tiles take half a line at a time: 0.60 to 0.68 in five calls of skinny
products on an H200, BLOCK_K 32 against 64 and 128 with as many bytes on their way, artifacts/tuning/trials/h200.jsonl.
For a quarter as much again: a guess."""
LOADED = 1.5
"""Latency of memory that is busy over that of idle memory. A guess, with which an h100 wants 30 KiB on their way to an
SM for nearly all of its bandwidth, as NVIDIA's advice for Hopper has it."""
WAITING = 4.0
"""A tile is there when its last line is: so many times the share of bytes that come from DRAM is that of tiles that
wait for it. A guess."""
BLOCK_START = 700.0
"""Clocks until a block's first instruction, and from its last store on. A guess."""
PER_INSTRUCTION = 2.5
"""Clocks of a warp's instruction if no other warp is in the way: dependent ones take 4 to 6. A guess."""
PRODUCT_LATENCY = 33.0
"""Clocks until the next matrix instruction can add to the same accumulators: arXiv:2402.13499, of one warp's."""
BARRIER = 30.0
"""Clocks of a barrier or of a wait for copies. A guess."""
L2_SHARE = 0.5
"""Of L2 that holds what blocks share, against streams. A guess."""
PORT, SHARED_PORT = 64, 128
"""Bytes per clock of an SM from L2 and from its shared memory: NVIDIA's architecture white papers."""
PORT_SHARE = 0.75
"""Of the former. A guess."""
SCHEDULERS, INTEGER_LANES, SPECIAL_LANES = 4, 16, 4
"""Of an SM, and of one of its schedulers."""
OVERLAP = 4.0
"""Exponent with which times that overlap add up. A guess."""


@dataclass(frozen=True)
class Prediction:
    """Microseconds, but for ``blocks``, ``waves`` (of blocks that fit the GPU at once) and ``in_flight`` (bytes on
    their way to an SM while all its blocks wait). ``tail``: what of the SMs' own times the average SM has nothing to
    do. ``bound``: the roofline. ``limit``: the longest of the times that overlap."""

    microseconds: float
    bound: float
    launch: float
    start: float
    dram: float
    l2: float
    matrix: float
    issue: float
    shared: float
    latency: float
    tail: float
    follower: float
    blocks: float
    waves: float
    blocks_per_sm: float
    in_flight: float

    @property
    def limit(self) -> str:
        parts = ("dram", "l2", "matrix", "issue", "shared", "latency")
        return max(parts, key=lambda name: float(getattr(self, name)))


def bound(call: Call, target: Target) -> float:
    """Least microseconds of a call by the roofline: bytes over bandwidth, FLOP over the matrix rate."""
    cost = KERNELS[call.kernel].cost(dict(call.dims), dict(call.sizes))
    return target.seconds(float(cost.bytes), float(cost.flops)) * 1e6


def predict(call: Call, config: Config, built: Compiled, target: Target) -> Prediction:
    """``built``: of this configuration, and launchable. Never below `bound`."""
    work = _work(call, config)
    code = read(work, config, built, ITEM_BYTES[call.dtype])
    return _model(call, config, work, code, target)


def estimate(call: Call, config: Config, target: Target) -> float | None:
    """Microseconds, without compiling; None for a configuration that plainly cannot fit or has nothing to do."""
    work = _work(call, config)
    if not work.blocks:
        return None
    code = guess(work, config, target, ITEM_BYTES[call.dtype])
    return None if code is None else _model(call, config, work, code, target).microseconds


@lru_cache(maxsize=256)
def _plain(call: Call) -> tuple[dict[str, int | float | bool], dict[str, int], float]:
    """Dims, sizes, and bytes of the cost."""
    dims, sizes = dict(call.dims), dict(call.sizes)
    return dims, sizes, float(KERNELS[call.kernel].cost(dims, sizes).bytes)


def _work(call: Call, config: Config) -> Work:
    kernel = KERNELS[call.kernel]
    assert kernel.work is not None
    dims, sizes, _ = _plain(call)
    return kernel.work(dims, config, sizes)


@lru_cache(maxsize=256)
def _bound(call: Call, target: Target) -> float:
    return bound(call, target)


def _model(call: Call, config: Config, work: Work, code: Code, target: Target) -> Prediction:
    arch, clock, sms = target.architecture, target.clock, target.sms
    itemsize = ITEM_BYTES[call.dtype]
    us = 1e6 / clock
    loaded, stored = work.loaded * itemsize / 2, work.stored * itemsize / 2
    average = work.blocks / sms
    most = math.ceil(average)
    resident = min(code.blocks_per_sm, most)
    at_once = sms * code.blocks_per_sm

    fetched = _fetched(work, _plain(call)[2], at_once, target, config.get("SPLIT_K", 1) > 1) * itemsize / 2
    bandwidth = target.bandwidth * DRAM_SHARE * HALF_LINE ** max(0.0, math.log2(2 * LINE / (work.run * itemsize)))
    dram = fetched / bandwidth * 1e6
    everything = work.blocks * (loaded + stored)
    l2 = max(everything / (arch.l2_per_clock * sms), most * loaded / (PORT * PORT_SHARE)) * us

    rate = _matrix_rate(code.matrix, target)
    shared_warps = min(1.0, resident * code.warps / SCHEDULERS)
    products = code.flops * code.warps / rate
    matrix = most * work.steps * products / (MATRIX_SHARE * shared_warps) * us
    slots = max(
        code.instructions,
        code.fma * WARP / arch.fma_lanes,
        code.alu * WARP / INTEGER_LANES,
        code.special * WARP / SPECIAL_LANES,
    )
    issue = most * code.warps / SCHEDULERS * (work.steps * slots + code.outside) / ISSUE_SHARE * us
    shared = most * work.steps * code.warps * code.shared / SHARED_PORT * us

    far = min(1.0, WAITING * fetched / max(everything, 1.0))
    way = LOADED * (arch.l2_latency + (arch.dram_latency - arch.l2_latency) * far)
    # a tile's own bytes take their time too, at its SM's share of what they come over
    share = fetched / max(everything, 1.0) / (bandwidth / clock / min(sms, work.blocks))
    way_of_tile = way + loaded / work.steps * max(share, 1 / arch.l2_per_clock)
    turn, inside = _turn(code, products, way_of_tile)
    prologue = BLOCK_START + code.outside * _per_instruction(code) + (work.chain - 1) * arch.l2_latency
    prologue += way if code.ahead else 0.0
    block = prologue + work.steps * turn
    rounds = math.ceil(most / resident)
    ends = work.idle / (sms * max(code.blocks_per_sm, 1)) * (BLOCK_START + 2 * arch.l2_latency)
    latency = (rounds * block - prologue + ends) * us
    start = prologue * us

    overlapping = (dram, l2, matrix, issue, shared, latency)
    busy = sum(t**OVERLAP for t in overlapping) ** (1 / OVERLAP)
    follower = _follower(call, config, target, way * us)
    least = _bound(call, target)
    return Prediction(
        microseconds=max(least, LAUNCH + start + busy) + follower,
        bound=least,
        launch=LAUNCH,
        start=start,
        dram=dram,
        l2=l2,
        matrix=matrix,
        issue=issue,
        shared=shared,
        latency=latency,
        tail=max(matrix, issue, shared) * (1 - average / most),
        follower=follower,
        blocks=float(work.blocks),
        waves=work.blocks / at_once,
        blocks_per_sm=float(code.blocks_per_sm),
        in_flight=resident * loaded / work.steps * max(code.ahead, 1) * min(1.0, way / max(inside, 1.0)),
    )


def _fetched(work: Work, least: float, at_once: int, target: Target, partial: bool) -> float:
    """Bytes from and to DRAM: ``least``, operands that have left L2 before the next row of tiles asks for them, and
    results that are ``partial`` and do not fit it."""
    kept = L2_SHARE * target.l2
    again = max(0.0, work.blocks * work.stored - kept) if partial else 0.0
    if (p := work.panels) and p.rows * p.row_bytes + p.columns * p.column_bytes > kept:
        height = min(p.rows, max(p.group, at_once // p.columns))
        if p.columns * p.column_bytes > kept:
            again += p.repeats * (-(-p.rows // height) - 1) * p.columns * p.column_bytes
        if height * p.row_bytes > kept:
            width = min(p.columns, max(1, at_once // height))
            again += p.repeats * (-(-p.columns // width) - 1) * p.rows * p.row_bytes
    return least + again


def _matrix_rate(matrix: str, target: Target) -> float:
    """FLOP per clock of an SM."""
    full = target.flops / target.sms / target.clock
    return full if matrix in BY_WARPGROUPS.values() else min(full, float(target.architecture.warp_matrix))


def _per_instruction(code: Code) -> float:
    """Clocks that an instruction of each of a block's warps takes if the block is alone."""
    return max(code.warps / SCHEDULERS, PER_INSTRUCTION)


def _turn(code: Code, products: float, way: float) -> tuple[float, float]:
    """Clocks of a turn of the main loop of a block that is alone, and of what it computes in it. ``products``: of its
    matrix instructions if nothing else is in their way; ``way``: of a tile from memory."""
    chain = max(products / min(1.0, code.warps / SCHEDULERS), code.dependent * PRODUCT_LATENCY)
    other = (code.instructions - code.products) * _per_instruction(code)
    other += (code.barriers + code.spills) * BARRIER
    inside = max(chain, other) + 0.5 * min(chain, other)
    if not code.ahead:
        return inside + way, inside
    return (inside**OVERLAP + (way / code.ahead) ** OVERLAP) ** (1 / OVERLAP), inside


def _follower(call: Call, config: Config, target: Target, way: float) -> float:
    """Microseconds of what has to follow: its launch, one way to memory and its roofline."""
    dims, sizes, _ = _plain(call)
    following = KERNELS[call.kernel].then(dims, config)
    if following is None:
        return 0.0
    name, following_dims = following
    cost = KERNELS[name].cost(following_dims, sizes)
    alone = BLOCK_START / target.clock * 1e6 + way
    return LAUNCH + alone + target.seconds(float(cost.bytes), float(cost.flops)) * 1e6
