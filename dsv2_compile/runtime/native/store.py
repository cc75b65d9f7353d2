"""The KV cache of a session of a native engine, in pages, and the calls that add to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import NumericError
from dsv2_compile.plan.pack import pack
from dsv2_compile.plan.plan import Plan
from dsv2_compile.runtime.native.pages import PagePool, PageTables

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Executor(Protocol):
    """Runs the programs of a plan over one cache."""

    def run(self, name: str, symbols: Mapping[str, int], inputs: Mapping[str, Any]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; ``inputs`` int32 arrays by name."""

    def close(self) -> None:
        """Give the memory back."""

    def write_rows(self, at: Ints, rows: Floats) -> None:
        """Cache rows [layers, n, C] into rows ``at`` [n] of every layer's cache."""

    def read_rows(self, at: Ints) -> Floats:
        """The inverse, float32 [layers, n, C]."""


class PagedStore:
    """``slots`` sequences whose pages come from ``pool``; page tables are handed to the programs as they are."""

    def __init__(self, plan: Plan, executor: Executor, pool: PagePool, slots: int) -> None:
        self._plan, self._executor = plan, executor
        self._pages = PageTables(pool, slots, plan.pages)

    def append(self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints) -> Floats:
        """Add ids[b, :counts[b]] to the sequence in slots[b], which holds past[b] positions -> logits [B, V] of the
        last token of each. ResourceError if there are no pages left; a call that fails adds nothing."""
        chosen = slots.tolist()
        self._pages.reserve(chosen, (past + counts).tolist())
        try:
            logits: Floats | None = None
            for rows, start, stop in self._calls(phase, counts, past):
                tokens = [ids[b, i:j] for b, i, j in zip(rows, start, stop, strict=True)]
                cached = [int(past[b]) + i for b, i in zip(rows, start, strict=True)]
                found = self._run(phase, tokens, cached, self._pages.tables[slots[rows]])
                logits = np.empty((len(ids), found.shape[1]), np.float32) if logits is None else logits
                logits[rows] = found
            assert logits is not None
            if not np.isfinite(logits).all():
                raise NumericError(
                    f"{phase} gave NaN or infinity for slots {chosen}.",
                    "Check the engine with dsv2-compile verify; the weights may overflow its dtype.",
                )
            return logits
        except BaseException:
            self._pages.release(chosen, past.tolist())
            raise

    def put(self, slot: int, rows: Floats) -> None:
        """Cache rows [layers, T, C] as the first T positions of the sequence in ``slot``."""
        self._pages.reserve([slot], [rows.shape[1]])
        self._executor.write_rows(self._pages.rows(slot, rows.shape[1]), rows)

    def release(self, slots: Ints, empty: bool) -> None:
        self._pages.release(slots.tolist())

    def rows(self, slot: int, count: int) -> Floats:
        """The first ``count`` cached rows of the sequence in ``slot``, [layers, count, C]."""
        return self._executor.read_rows(self._pages.rows(slot, count))

    def _calls(self, phase: str, counts: Ints, past: Ints) -> Iterator[tuple[list[int], list[int], list[int]]]:
        """Rows of the batch that a call serves, and which of their new tokens: as many as a program holds."""
        largest = self._largest("decode" if phase == "decode" else "extend")
        done = [0] * len(counts)
        while left := [b for b in range(len(counts)) if done[b] < counts[b]]:
            rows: list[int] = []
            stop: list[int] = []
            room = largest["rows"]
            for b in left[: largest["batch"]]:
                if not room:
                    break
                take = min(int(counts[b]) - done[b], room)
                rows.append(b)
                stop.append(done[b] + take)
                room -= take
            yield rows, [done[b] for b in rows], stop
            for b, end in zip(rows, stop, strict=True):
                done[b] = end

    def _largest(self, phase: str) -> Mapping[str, int]:
        return [p.limits for p in self._plan.programs.values() if p.phase == phase][-1]

    def _run(self, phase: str, tokens: list[Ints], past: list[int], tables: NDArray[np.int32]) -> Floats:
        rows = sum(map(len, tokens))
        name = self._plan.program_for(phase, rows, len(tokens), sum(past) + rows)
        assert name is not None
        symbols, inputs = pack(self._plan.programs[name], self._plan.page, tokens, past, tables)
        logits: Floats = self._executor.run(name, symbols, inputs)["logits"]
        return logits
