"""Plans for tests of what runs them: one written by hand, one lowered from a tiny model; and engine files for both.

No kernel is compiled: cubins hold the number of their kernel, which no GPU runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.engine.placement import Placement
from dsv2_compile.plan.check import problems
from dsv2_compile.plan.dtypes import NAMES, NUMPY
from dsv2_compile.plan.expr import cdiv, symbol
from dsv2_compile.plan.plan import Buffer, KernelEntry, Launch, Plan, PlanProgram, Pointer

Arrays = dict[str, NDArray[Any]]
ROWS, BATCH, CONTEXT, SLOTS = map(symbol, ("rows", "batch", "context", "slots"))


def _entry(number: int, *args: str, **launch: int) -> KernelEntry:
    claims = tuple(kind.startswith("*") for kind in args)
    numbers = {"warps": 4, "shared": 0, "scratch": 0, "scratch_align": 1, **launch}
    return KernelEntry(f"kernel{number}", f"kernels/{number}.cubin", f"k{number}", args, claims, {}, **numbers)


def toy() -> Plan:
    """Every kind of argument, a null pointer, scratch, much shared memory, a grid that may be empty, and a decode step
    ("decode-deep") whose launches depend on the lengths. Cache [2, slots, 8] bf16, logits [batch, 10], next tokens that
    nothing writes."""
    kernels = (
        _entry(0, "*i32", "*bf16", "*bf16", "i32", warps=1),
        _entry(1, "*bf16", "*i32", "*bf16", "*i32", "i32", "i32", shared=70_000, scratch=384, scratch_align=128),
        _entry(2, "*bf16", "*bf16", "*fp32", warps=8, shared=40_000),
    )
    inputs = {n: Buffer("i32", (ROWS,), "input") for n in ("tokens", "positions", "slots", "sequence")}
    inputs["page_table"] = Buffer("i32", (BATCH, 4), "input")
    buffers = inputs | {
        "embed": Buffer("bf16", (30, 8), "weight"),
        "head": Buffer("bf16", (10, 8), "weight"),
        "cache": Buffer("bf16", (2, SLOTS, 8), "cache"),
        "x": Buffer("bf16", (ROWS, 8), "arena", 0),
        "y": Buffer("bf16", (ROWS, 8), "arena", 256),
        "logits": Buffer("fp32", (BATCH, 10), "output"),
        "next_tokens": Buffer("i32", (BATCH,), "output"),
    }
    second = (Pointer("x"), Pointer("slots"), Pointer("cache", SLOTS * 16), None, ROWS, 7)
    launches = (
        Launch(0, (ROWS, 1, 1), (Pointer("tokens"), Pointer("embed"), Pointer("x"), ROWS), "embedding"),
        Launch(1, (cdiv(ROWS, 4), 2, 1), second, "cache write, layer 1"),
        Launch(0, (ROWS - 1, 1, 1), (Pointer("positions"), Pointer("x"), Pointer("y"), ROWS - 1), "all but one"),
        Launch(2, (BATCH, 1, 1), (Pointer("y"), Pointer("head", 16), Pointer("logits")), "logits"),
    )
    deep = (*launches, Launch(0, (cdiv(CONTEXT, 16), 1, 1), launches[0].args, "by the context"))
    long = {"rows": 16, "batch": 6, "context": 96}
    limits = {"rows": 6, "batch": 6, "context": 384}
    programs = {
        "prefill": PlanProgram("prefill", long, buffers, launches, 512),
        "extend": PlanProgram("extend", long, buffers, launches, 512),
        "decode-2": PlanProgram("decode", {"rows": 2, "batch": 2, "context": 128}, buffers, launches, 512),
        "decode-6": PlanProgram("decode", limits, buffers, launches, 512),
        "decode-deep": PlanProgram("decode", {**limits, "batch": 7, "rows": 7}, buffers, deep, 512),
    }
    plan = Plan("h800", "sm_90", "bf16", 16, 4, kernels, programs)
    assert not list(problems(plan)), list(problems(plan))
    return plan


LIMITS = {
    "prefill": {"rows": 24, "batch": 2, "context": 24},
    "extend": {"rows": 24, "batch": 2, "context": 256},
    "decode": {"rows": 6, "batch": 6, "context": 1024},
}
PAGES = 3
"""Width of a page table of `tiny`."""


@cache
def tiny(dtype: str) -> tuple[Plan, Any]:
    """The tiny preset, smaller still, with a dense layer and one of experts, as plan and config; not compiled."""
    from dsv2_compile.checkpoint.presets import PRESETS
    from tests.host_plans import emit, lower, program, target

    gpu = target("h800")
    small = {
        "num_hidden_layers": 2, "vocab_size": 256, "bos_token_id": 254, "eos_token_ids": (255,), "hidden_size": 64,
        "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8, "q_lora_rank": 48,
        "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    }  # fmt: skip
    config = dataclasses.replace(PRESETS["tiny"], **small)
    drafts = {
        (phase, phase): lower(program(config, phase, 64 * PAGES), phase, gpu, dtype, limits, PAGES)
        for phase, limits in LIMITS.items()
    }
    entries = emit.uncompiled(emit.requests(drafts.values()))
    plan = emit.plan(gpu, dtype, 64, PAGES, drafts, entries)
    assert not list(problems(plan)), list(problems(plan))
    return plan, config


def random_weights(plan: Plan, seed: int) -> Arrays:
    """By name, as the plan wants them; bf16 as its bits. Sums over a row stay near 1."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for program in plan.programs.values():
        for name, buffer in program.buffers.items():
            if buffer.place == "weight" and name not in found:
                dims = [int(d) for d in buffer.shape]  # type: ignore[call-overload]  a weight's are known
                values = rng.standard_normal(dims) * dims[-1] ** -0.5 if len(dims) > 1 else rng.random(dims) + 0.5
                bits = values.astype(np.float32)
                found[name] = bits_of(bits) if buffer.dtype == "bf16" else bits.astype(NUMPY[buffer.dtype])
    return found


def bits_of(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def write_engine(root: Path, plan: Plan, weights: Mapping[str, NDArray[Any]]) -> dict[str, Placement]:
    """Cubins that name their kernel, and the weights in two files behind a header."""
    (root / "kernels").mkdir(parents=True)
    (root / "weights").mkdir()
    for i, entry in enumerate(plan.kernels):
        (root / entry.cubin).write_bytes(str(i).encode())
    dtypes = {n: b.dtype for p in plan.programs.values() for n, b in p.buffers.items()}
    placed, half = {}, len(weights) // 2
    for file, names in (("weights/1.bin", list(weights)[half:]), ("weights/2.bin", list(weights)[:half])):
        data = bytearray(b"\xee" * 64)
        for name in names:
            w = weights[name]
            placed[name] = Placement(file, len(data), w.nbytes, NAMES[dtypes[name]], w.shape)
            data += w.tobytes()
        (root / file).write_bytes(data)
    return placed
