"""Part b: engines built elsewhere, loaded by cuda.core: against the eager model, by graphs and by single launches,
the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.devices.host_driver import in_place_of_a_gpu
from dsv2_compile.engine import integrity
from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.gpu_check.options import OK, SKIPPED, WRONG, Options, Row
from dsv2_compile.pipeline.cuda_proof import prove
from dsv2_compile.plan import text
from dsv2_compile.plan.pack import pack
from dsv2_compile.plan.plan import FILE, Plan
from dsv2_compile.progress import silent
from dsv2_compile.runtime.native import model
from dsv2_compile.runtime.native.cuda import CudaExecutor
from dsv2_compile.runtime.native.launches import replayable

REPEATS, ON_HOST = 100, 2
"""Runs of each call whose bits are compared."""
FEW_TOKENS = 40
"""New tokens of a sequence in a call, at most."""


@dataclass(frozen=True)
class Call:
    """One call of a program. ``past``, ``counts``: cached and new positions by sequence."""

    phase: str
    past: tuple[int, ...]
    counts: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.phase}, {len(self.counts)} sequences, {sum(self.counts)} new after {sum(self.past)}"


def items(options: Options) -> list[Row]:
    if not options.engines:
        return [{"id": "engines", "status": SKIPPED, "reason": "no --engine with weights was given"}]
    return [
        {"id": f"{Path(root).name} {what}", "engine": root, "what": what}
        for root in options.engines
        for what in ("against eager", "same bits")
    ]


def start(options: Options) -> Options:
    return options


def sound(state: Options) -> None:
    """A fault of the GPU fails every later call of its process: seen by making one."""
    if not state.host:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


def run(state: Options, item: Row) -> Row:
    root = Path(item["engine"])
    return _against_eager(root, state) if item["what"] == "against eager" else _same_bits(root, state)


def _against_eager(root: Path, options: Options) -> Row:
    if not options.host:  # `prove` would go on without a GPU
        model.require_compatible(integrity.read_manifest(root))
    report = prove(root, None, silent)
    found: Row = {"status": OK if report.passed else WRONG, "executed": report.executed, **_figures(report.summary())}
    if not report.passed:
        found["reason"] = "; ".join(report.problems[:3])
    return found


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: summary[k] for k in ("typical", "worst", "top1", "repeatable", "sections")}


def calls(plan: Plan, manifest: Manifest) -> Iterator[Call]:
    """Ragged prompts, a piece more by extend, then steps of several batches: 1, one that graphs pad, the largest."""
    batch = min(manifest.max_batch_size, 8)
    room = min(FEW_TOKENS, (manifest.max_seq_len - 1) // 2)
    rows = min(p.limits["rows"] for p in plan.programs.values() if p.phase != "decode")
    first = tuple(max(1, min(room - b, rows // batch)) for b in range(batch))
    more = tuple(max(1, n // 2) for n in first)
    yield Call("prefill", (0,) * batch, first)
    yield Call("extend", first, more)
    seen = tuple(map(sum, zip(first, more, strict=True)))
    for size in sorted({1, min(3, batch), batch}):
        yield Call("decode", seen[:size], (1,) * size)


def _same_bits(root: Path, options: Options) -> Row:
    """Every call by an executor that replays graphs and by one that launches, again and again."""
    manifest, repeats = integrity.read_manifest(root), ON_HOST if options.host else REPEATS
    integrity.verify(root, manifest)
    plan = text.parse((root / FILE).read_bytes())
    todo = list(calls(plan, manifest))
    most = max(p + n for call in todo for p, n in zip(call.past, call.counts, strict=True))
    each, batch = -(-most // plan.page), len(todo[0].counts)
    rng, problems, done = np.random.default_rng(), list[str](), list[Row]()
    tables = np.zeros((batch, plan.pages), np.int32)
    tables[:, :each] = rng.permutation(each * batch).reshape(batch, each)
    slots = plan.page * each * batch
    with ExitStack() as stack:
        stack.enter_context(in_place_of_a_gpu(plan, root) if options.host else nullcontext())
        graphs, single = (
            stack.enter_context(CudaExecutor(plan, root, manifest.weights, slots, graphs=g)) for g in (True, False)
        )
        for call in todo:
            symbols, inputs, name = _inputs(plan, call, tables[: len(call.counts)], manifest.model.vocab_size, rng)
            a, b = (_bits(e, name, symbols, inputs, repeats) for e in (graphs, single))
            same = a.first == b.first
            done.append({"call": str(call), "runs": repeats, "graph_changed": a.changed, "single_changed": b.changed})
            done[-1] |= {
                "graph_as_single": same,
                "replayed": replayable(plan.programs[name]),
                "finite": a.finite and b.finite,
            }
            problems += [f"{call}: {a.changed + b.changed} runs gave other bits"] * bool(a.changed + b.changed)
            problems += [f"{call}: a graph gives other bits than its launches"] * (not same)
            problems += [f"{call}: NaN or infinity"] * (not (a.finite and b.finite))
    return {"status": WRONG if problems else OK, "calls": done, **({"reason": "; ".join(problems)} if problems else {})}


def _inputs(
    plan: Plan, call: Call, tables: NDArray[np.int32], vocabulary: int, rng: np.random.Generator
) -> tuple[dict[str, int], dict[str, NDArray[np.int32]], str]:
    """Symbols, inputs and program of ``call`` with random tokens."""
    context = sum(call.past) + sum(call.counts)
    name = plan.smallest(call.phase, rows=sum(call.counts), batch=len(call.counts), context=context)
    if name is None:
        raise ValueError(f"no program of the plan holds {call}")
    tokens = [rng.integers(vocabulary, size=n) for n in call.counts]
    symbols, inputs = pack(plan.programs[name], plan.page, tokens, list(call.past), tables)
    return symbols, inputs, name


@dataclass(frozen=True)
class _Bits:
    """``changed``: runs whose logits, or cache at the end, differ from the first."""

    first: tuple[bytes, bytes]
    changed: int
    finite: bool


def _bits(
    executor: CudaExecutor, name: str, symbols: dict[str, int], inputs: dict[str, NDArray[np.int32]], repeats: int
) -> _Bits:
    """A call writes the rows that it wrote before: its own results are all that can differ."""
    written = np.sort(inputs["slots"]).astype(np.int64)
    first, changed = (b"", b""), 0
    finite = True
    for i in range(repeats):
        logits = executor.run(name, symbols, inputs)["logits"]
        found = logits.tobytes(), executor.read_rows(written).tobytes()
        if i == 0:
            first, finite = found, bool(np.isfinite(logits).all())
        changed += found != first
    return _Bits(first, changed, finite)


def summary(rows: list[Row]) -> dict[str, Any]:
    return {}
