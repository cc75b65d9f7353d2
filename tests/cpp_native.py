"""A small GPU engine, and two records of what is asked of a driver that runs it: by Python, and by C++ through the
stand-in for libcuda. Neither computes anything: whatever is read back is zeros."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.engine.manifest import Manifest, ProgramEntry, TensorEntry
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.plan import text
from dsv2_compile.plan.plan import FILE, Buffer, Launch, Plan, PlanProgram, Pointer
from dsv2_compile.runtime.native.cuda_core import STATIC_SHARED
from dsv2_compile.runtime.native.driver import DriverError
from tests import native_plans, toy_engine
from tests.cubin_files import cubin
from tests.native_plans import BATCH, CONTEXT

VOCAB, MAX_BATCH, MAX_SEQ, LAYERS, WIDTH = 10, 7, 64, 2, 8
CONFIG = replace(
    toy_engine.CONFIG,
    vocab_size=VOCAB, num_hidden_layers=LAYERS, kv_lora_rank=4, qk_rope_head_dim=4, bos_token_id=8, eos_token_ids=(9,),
)  # fmt: skip
CHOICE = {"temperature": "fp32", "top_p": "fp32", "top_k": "i32", "uniform": "fp32"}


def plan() -> Plan:
    """`native_plans.toy` with every input that there is."""
    toy = native_plans.toy()
    return replace(toy, programs={name: _with_inputs(program) for name, program in toy.programs.items()})


def _with_inputs(program: PlanProgram) -> PlanProgram:
    more = {n: Buffer(kind, (BATCH,), "input") for n, kind in CHOICE.items()}
    if program.phase != "decode":
        more |= {n: Buffer("i32", (BATCH + 1,), "input") for n in ("query_start", "context_start")}
        more |= {"context_slots": Buffer("i32", (CONTEXT,), "input"), "last_rows": Buffer("i32", (BATCH,), "input")}
    args = (Pointer("top_k"), Pointer("embed", 32), Pointer("y"), BATCH)
    launches = (*program.launches, Launch(0, (1, BATCH, 1), args, "choice"))
    limits = {**program.limits, "context": MAX_BATCH * MAX_SEQ} if program.phase == "extend" else program.limits
    return replace(program, limits=limits, buffers={**program.buffers, **more}, launches=launches)


def build(
    out: Path,
    built: Plan | None = None,
    image: Callable[[Any], bytes] = cubin,
    files: dict[str, bytes] | None = None,
    weights: dict[str, NDArray[Any]] | None = None,
    **changes: Any,
) -> Manifest:
    """Write the engine of ``built``, without kernels that any GPU could run. ``image``: the cubin of an entry of the
    plan; ``files``: others, instead of those; ``changes``: of the manifest."""
    built = built or plan()
    held = native_plans.random_weights(built, 1) if weights is None else weights
    stage = out.with_name(f"{out.name}.weights")
    placed = native_plans.write_engine(stage, built, held)
    with EngineWriter(out) as w:
        contents = {FILE: text.to_bytes(built)}
        contents |= {k.cubin: image(k) for k in built.kernels if ".." not in k.cubin}
        contents |= {p: (stage / p).read_bytes() for p in ("weights/1.bin", "weights/2.bin")}
        for path, data in (contents | (files or {})).items():
            w.add_bytes(path, data)
        w.weights |= placed
        entry = {"x": TensorEntry("int32", ("rows",))}
        made = {
            "backend": "cuda", "target": built.target, "model": CONFIG, "dtype": "bfloat16",
            "programs": {name: ProgramEntry(FILE, entry, entry, "absorbed", {}) for name in built.programs},
            "max_batch_size": MAX_BATCH, "max_seq_len": MAX_SEQ,
        }  # fmt: skip
        return w.finish(toy_engine.manifest(**(made | changes)))


class ZeroDriver:
    """A `Driver` that writes the lines of tests/stub/cuda_stub.cpp, with addresses of its own."""

    name, capability, version = "no GPU", "sm_90", "13.0"

    def __init__(self, free: int = 1 << 40) -> None:
        self.free_bytes, self.lines = free, list[str]()
        self._next, self._graphs = 1 << 30, itertools.count()

    def _note(self, *what: object) -> None:
        self.lines.append(" ".join(map(str, what)))

    def activate(self) -> None:
        """There is one thread."""

    def memory(self) -> tuple[int, int]:
        return self.free_bytes, 1 << 41

    def alloc(self, nbytes: int) -> int:
        address, self._next = self._next, self._next + -(-nbytes // 4096) * 4096
        self._note("alloc", address, nbytes)
        return address

    def free(self, address: int) -> None:
        self._note("free", address)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        self._note("pinned", nbytes)
        return np.full(nbytes, 0xAA, np.uint8)

    def copy_in(self, address: int, host: NDArray[Any]) -> None:
        self._note("copy_in", address, host.nbytes, fnv(host.tobytes()))

    def copy_out(self, host: NDArray[Any], address: int) -> None:
        self._note("copy_out", address, host.nbytes)
        host[:] = 0

    def fill(self, address: int, value: int, nbytes: int) -> None:
        self._note("fill", address, value, nbytes)

    def load(self, image: bytes, symbol: str, shared: int) -> str:
        self._note("function", symbol)
        if shared > STATIC_SHARED:
            self._note("shared", symbol, shared)
        return symbol

    def widths(self, kernel: str) -> None:
        """Not told."""

    def launch(self, kernel: str, grid: Sequence[int], threads: int, shared: int, args: Sequence[Any]) -> None:
        self._note("launch", kernel, *grid, threads, shared, *args)

    def capture(self, work: Callable[[], None]) -> int:
        self._note("capture")
        work()
        number = next(self._graphs)
        self._note("graph", number)
        return number

    def replay(self, graph: int) -> None:
        self._note("replay", graph)

    def discard(self, graph: int) -> None:
        self._note("discard", graph)

    def sync(self) -> None:
        self._note("wait")

    def close(self) -> None:
        """Nothing to give back."""


def opened(driver: ZeroDriver, device: int) -> ZeroDriver:
    if driver.free_bytes < 0:
        raise DriverError("CUDA_ERROR_UNKNOWN")
    return driver


def fnv(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return found


ADDRESSED = {"free": slice(1, 2), "copy_in": slice(1, 2), "copy_out": slice(1, 2), "fill": slice(1, 2)}
"""Where an operation's address is; the arguments of a launch follow its sizes."""
FIRST_ARGUMENT = 7


def relative(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """The lines as words, with every address as the number of its block and the bytes from its start. Graphs are
    discarded in any order."""
    blocks: list[tuple[int, int]] = []

    def place(word: str) -> str:
        inside = [(i, int(word) - a) for i, (a, n) in enumerate(blocks) if a <= int(word) < a + n]
        return "block{}+{}".format(*inside[0]) if inside else word

    found = []
    for words in map(str.split, lines):
        if words[0] == "alloc":
            blocks.append((int(words[1]), int(words[2])))
        where = ADDRESSED.get(words[0], slice(1, 2) if words[0] == "alloc" else slice(FIRST_ARGUMENT, None))
        if words[0] in {*ADDRESSED, "alloc", "launch"}:
            words[where] = map(place, words[where])
        found.append(tuple(words))
    ends = [i for i, words in enumerate(found) if words[0] == "discard"]
    for i, words in zip(ends, sorted(found[i] for i in ends), strict=True):
        found[i] = words
    return found


def random_calls(seed: int, count: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Calls of a session of `MAX_BATCH` slots, none of which it refuses: names and arguments."""
    from dsv2_compile.runtime.sampling import Draw, Sampling

    rng = np.random.default_rng(seed)
    lengths = dict.fromkeys(range(MAX_BATCH), 0)
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def draws(n: int) -> list[Draw]:
        kinds = (Sampling(), Sampling(0.7, 5, 0.9, 1), Sampling(1e300, 1 << 40, 0.25))
        return [Draw(kinds[int(rng.integers(3))], float(rng.random())) for _ in range(n)]

    def some(slots: list[int], most: int = MAX_BATCH) -> list[int]:
        return rng.permutation(slots)[: int(rng.integers(1, most + 1))].tolist()

    while len(calls) < count:
        live = [s for s, n in lengths.items() if n]
        grown = [s for s in live if lengths[s] < MAX_SEQ - 20]
        kind = str(rng.choice(["begin", "more", "one", "one", "one", "free", "restore"]))
        if kind in ("begin", "more") and (kind == "begin" or grown):
            slots = some(list(lengths)) if kind == "begin" else some(grown)
            counts = rng.integers(1, 20, len(slots))
            tokens = rng.integers(0, VOCAB, (len(slots), 20))
            chosen = bool(rng.integers(2))
            name = {"begin": ("prefill", "start"), "more": ("extend", "resume")}[kind][chosen]
            calls.append((name, (tokens, counts, *((draws(len(slots)),) if chosen else ()), slots)))
            lengths |= {s: int(n) + (lengths[s] if kind == "more" else 0) for s, n in zip(slots, counts, strict=True)}
        elif kind == "one" and grown:
            slots = some(grown)
            tokens, chosen = rng.integers(0, VOCAB, len(slots)), bool(rng.integers(2))
            calls.append(("step", (tokens, draws(len(slots)), slots)) if chosen else ("decode", (tokens, slots)))
            lengths |= {s: lengths[s] + 1 for s in slots}
        elif kind == "free" and len(live) > 3:
            slots = some(live, 2)
            calls.append(("free", (slots,)))
            lengths |= dict.fromkeys(slots, 0)
        elif kind == "restore":
            slots = some(list(lengths), 2)
            rows = rng.standard_normal((LAYERS, len(slots), 40, WIDTH)).astype(np.float32)
            counts = rng.integers(1, 41, len(slots))
            calls.append(("restore", (rows, counts, slots)))
            lengths |= dict(zip(slots, counts.tolist(), strict=True))
    return calls
