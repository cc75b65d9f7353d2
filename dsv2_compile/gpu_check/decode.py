"""Part d: tokens per second of a whole model of random weights, beside the roofline and transformers."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.devices.device import Device, open_device
from dsv2_compile.devices.host_driver import in_place_of_a_gpu
from dsv2_compile.engine import integrity
from dsv2_compile.engine.placement import Placement
from dsv2_compile.gpu_check import roofline, scale
from dsv2_compile.gpu_check.options import ERROR, OK, SKIPPED, WRONG, Options, Row
from dsv2_compile.gpu_check.peers import MODES, Peer
from dsv2_compile.gpu_check.timing import against, spread
from dsv2_compile.plan import text
from dsv2_compile.plan.dtypes import ITEM_BYTES, NAMES
from dsv2_compile.plan.pack import pack
from dsv2_compile.plan.plan import FILE, Plan, PlanProgram
from dsv2_compile.runtime.native.cuda import CudaExecutor
from dsv2_compile.runtime.native.memory import cache_buffer
from dsv2_compile.targets import target

STEPS, CALLS = 50, 10
"""Replays of a step that are timed by the GPU, and calls that are timed by the host."""
STAGGER = 4096
"""Bytes between the starts of two weights in the file that all are cut from."""
WEIGHT = 0.02
"""Standard deviation of matrices, as the published models are initialised."""
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class State:
    """What is open: an engine, or peers by mode."""

    options: Options
    stack: ExitStack = field(default_factory=ExitStack)
    engine: Running | None = None
    peers: dict[str, Peer] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    plan: Plan
    config: ModelConfig
    executor: CudaExecutor
    positions: int
    opened_seconds: float


def items(options: Options) -> list[Row]:
    """The engine first, at the larger contexts last. ``group``: items that share a process, and its memory."""
    s = scale.scale(options)
    points = [(c, b) for c in s.model_contexts for b in s.batches]
    found = []
    for subject in ("engine", *MODES):
        for context, batch in points if subject != "compile" else points[: len(s.batches)]:
            row: Row = {
                "id": f"{subject} {s.model} batch {batch} context {context}",
                "group": "toys" if options.host else subject,
            }
            row |= {"subject": subject, "batch": batch, "context": context, "peer": subject != "engine"}
            if subject == "engine" and not options.plans:
                row |= {"status": SKIPPED, "reason": "no --engine that was built with --no-weights"}
            found.append(row if subject != "compile" else {**row, "timeout": 240.0})
    return found


def start(options: Options) -> State:
    return State(options)


def sound(state: State) -> None:
    if not state.options.host:
        torch.cuda.synchronize()


def run(state: State, item: Row) -> Row:
    if item["subject"] == "engine":
        return _engine(state, item)
    s = scale.scale(state.options)
    config = s.models[s.model]
    if item["subject"] not in state.peers:
        where = torch.device("cpu" if state.options.host else "cuda")
        state.peers[item["subject"]] = Peer(config, item["subject"], where, state.options.host)
    ms = spread(state.peers[item["subject"]].step_ms(item["batch"], item["context"], s.seconds, s.most))
    return {"status": OK, "ms": ms, "tokens_per_second": round(1e3 * item["batch"] / ms["median"], 1)}


def _engine(state: State, item: Row) -> Row:
    batch, context = item["batch"], item["context"]
    if state.engine is None:
        state.engine = _open(state)
    e = state.engine
    name = e.plan.smallest("decode", rows=batch, batch=batch)
    if name is None or context >= e.positions or batch * (context + 1) > e.executor.slots:
        return {"status": SKIPPED, "reason": f"the engine has no room for {batch} sequences of {context + 1}"}
    program = e.plan.programs[name]
    symbols, inputs = _step(e, program, batch, context)
    logits = e.executor.run(name, symbols, inputs)["logits"]
    calls = []
    for _ in range(CALLS if not state.options.host else 1):
        begin = time.perf_counter()
        e.executor.run(name, symbols, inputs)
        calls.append((time.perf_counter() - begin) * 1e3)
    ms = spread(e.executor.time(name, symbols, inputs, STEPS if not state.options.host else 1))
    costs = list(roofline.launch_costs(e.plan, program, {**symbols, "slots": e.executor.slots}))
    found: Row = {
        "status": OK if np.isfinite(logits).all() else WRONG,
        "program": name,
        "ms": ms,
        "call_ms": spread(calls),
        "tokens_per_second": round(1e3 * batch / ms["median"], 1),
        **against(state.options.machine, ms["median"], sum(c.bytes for c in costs), sum(c.flops for c in costs)),
        "launches": len(costs),
        "opened_seconds": round(e.opened_seconds, 1),
    }
    bounds = [against(state.options.machine, 1.0, c.bytes, c.flops)["bound_ms"] for c in costs]
    found["bound_ms"] = round(sum(bounds), 6)
    found["share"] = round(found["bound_ms"] / ms["median"], 4)
    found["kernels"] = _profile(e, name, symbols, inputs, costs, bounds)
    if found["status"] == WRONG:
        found["reason"] = "logits hold NaN or infinity"
    return found


def _profile(
    e: Running,
    name: str,
    symbols: dict[str, int],
    inputs: dict[str, NDArray[np.int32]],
    costs: list[roofline.LaunchCost],
    bounds: list[float],
) -> list[Row]:
    """By kernel and what it computes: launches, time and bound of all layers together, the longest first."""
    sums: dict[tuple[str, str], list[float]] = {}
    measured = e.executor.profile(name, symbols, inputs)
    for (what, ms), cost, bound in zip(measured, costs, bounds, strict=True):
        assert what == cost.what
        total = sums.setdefault((cost.kernel, re.sub(r"layers?[ .]\d+", "layer", what)), [0.0, 0.0, 0.0])
        total[:] = total[0] + 1, total[1] + ms, total[2] + bound
    rows = [
        {"kernel": k, "what": w, "launches": int(n), "ms": round(ms, 4), "bound_ms": round(b, 4)}
        for (k, w), (n, ms, b) in sums.items()
    ]
    return sorted(rows, key=lambda r: -float(str(r["ms"])))


def _step(
    e: Running, program: PlanProgram, batch: int, context: int
) -> tuple[dict[str, int], dict[str, NDArray[np.int32]]]:
    """A token for each of ``batch`` sequences of ``context`` positions, in pages of their own in random order."""
    each = -(-(context + 1) // e.plan.page)
    rng = np.random.default_rng(0)
    tables = np.zeros((batch, e.plan.pages), np.int32)
    tables[:, :each] = rng.permutation(e.executor.slots // e.plan.page)[: batch * each].reshape(batch, each)
    tokens = [rng.integers(e.config.vocab_size, size=1) for _ in range(batch)]
    return pack(program, e.plan.page, tokens, [context] * batch, tables)


def _open(state: State) -> Running:
    """The engine without weights, over random ones, its cache full of random numbers."""
    begin = time.perf_counter()
    root = Path(state.options.plans[0])
    manifest = integrity.read_manifest(root)
    integrity.verify(root, manifest)
    plan = text.parse((root / FILE).read_bytes())
    s = scale.scale(state.options)
    longest = min(manifest.max_seq_len, max(s.model_contexts) + 1)
    slots = min(manifest.max_batch_size, max(s.batches)) * -(-longest // plan.page) * plan.page
    if state.options.host:
        driver = state.stack.enter_context(in_place_of_a_gpu(plan, root))
        device = Device(driver, "cpu", target(state.options.target), 1)
    else:
        device = open_device(target(state.options.target), state.options.host)
    with tempfile.TemporaryDirectory(prefix="dsv2-gpu-check-") as folder:
        weights = random_weights(Path(folder), plan, device.torch)
        executor = state.stack.enter_context(CudaExecutor(plan, root, weights, slots))
    kind = TORCH[cache_buffer(plan).dtype]
    device.randomise(executor.addresses["cache"], executor.needs.cache, kind, 1.0)
    return Running(plan, manifest.model, executor, manifest.max_seq_len, time.perf_counter() - begin)


def random_weights(folder: Path, plan: Plan, where: torch.device) -> dict[str, Placement]:
    """Every weight of ``plan`` in a few files of random numbers, at offsets of its own, so that no two share bytes on
    the GPU. Matrices have a standard deviation of `WEIGHT`, norms are ones, angles of RoPE any cosine."""
    buffers = {n: b for p in plan.programs.values() for n, b in p.buffers.items() if b.place == "weight"}
    placed = {}
    groups: dict[tuple[str, str], list[str]] = {}
    for name, b in sorted(buffers.items()):
        groups.setdefault((b.dtype, _content(name, len(b.shape))), []).append(name)
    for (dtype, content), names in groups.items():
        file = folder / f"{content}.{dtype}"
        size = max(buffers[n].nbytes({}) for n in names) + STAGGER * len(names)
        _write(file, content, size // ITEM_BYTES[dtype], TORCH[dtype], where)
        for i, name in enumerate(names):
            b = buffers[name]
            shape = tuple(int(str(d)) for d in b.shape)
            placed[name] = Placement(str(file), i * STAGGER, b.nbytes({}), NAMES[dtype], shape)
    return placed


def _content(name: str, dims: int) -> str:
    if name.startswith("rope."):
        return "cosines"
    return "ones" if dims == 1 else "normal"


def _write(file: Path, content: str, count: int, dtype: torch.dtype, where: torch.device) -> None:
    values = torch.empty(count, dtype=dtype, device=where)
    if content == "ones":
        values.fill_(1)
    else:
        values.normal_(0.0, WEIGHT if content == "normal" else 1.0)
    if content == "cosines":
        values = values.cos()
    values.cpu().view(torch.uint8).numpy().tofile(file)


def groups(rows: list[Row]) -> Iterator[list[Row]]:
    for name in dict.fromkeys(r["group"] for r in rows):
        yield [r for r in rows if r["group"] == name]


def summary(rows: list[Row]) -> dict[str, Any]:
    """Tokens per second by subject and point."""
    return {r["id"]: r["tokens_per_second"] for r in rows if r["status"] not in (ERROR, SKIPPED)}
