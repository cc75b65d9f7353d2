"""The KV cache of a session of a native engine, in pages, and the calls that add to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.errors import NotANumber
from dsv2_compile.plan.pack import pack
from dsv2_compile.plan.plan import Plan
from dsv2_compile.runtime.native.pages import PagePool, PageTables
from dsv2_compile.runtime.sampling import Draw, columns

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
_SOUND: dict[str, Callable[[NDArray[Any]], bool]] = {
    "logits": lambda values: bool(np.isfinite(values).all()),
    "next_tokens": lambda values: bool((values >= 0).all()),
}
"""By output of a program: whether its rows are no sign of NaN or infinity."""


class Executor(Protocol):
    """Runs the programs of a plan over one cache."""

    def run(
        self, name: str, symbols: Mapping[str, int], inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """``outputs`` by name, None for all; ``inputs`` arrays by name."""

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
        return self._append("logits", phase, ids, counts, slots, past, {})

    def choose(
        self, phase: str, ids: Ints, counts: Ints, slots: Ints, past: Ints, draws: Sequence[Draw]
    ) -> NDArray[np.int32]:
        """As `append`; the next tokens, [B], chosen on the GPU. Its logits stay there."""
        return self._append("next_tokens", phase, ids, counts, slots, past, columns(draws))

    def _append(
        self,
        output: str,
        phase: str,
        ids: Ints,
        counts: Ints,
        slots: Ints,
        past: Ints,
        choice: Mapping[str, NDArray[Any]],
    ) -> NDArray[Any]:
        chosen = slots.tolist()
        self._pages.reserve(chosen, (past + counts).tolist())
        try:
            made: NDArray[Any] | None = None
            for rows, start, stop in self._calls(phase, counts, past):
                tokens = [ids[b, i:j] for b, i, j in zip(rows, start, stop, strict=True)]
                cached = [int(past[b]) + i for b, i in zip(rows, start, strict=True)]
                by_row = {name: values[rows] for name, values in choice.items()}
                found = self._run(output, phase, tokens, cached, self._pages.tables[slots[rows]], by_row)
                made = np.empty((len(ids), *found.shape[1:]), found.dtype) if made is None else made
                made[rows] = found
            assert made is not None
            if not _SOUND[output](made):
                raise NotANumber(
                    f"{phase} gave NaN or infinity for slots {chosen}.",
                    "Check the engine with dsv2-compile verify; the weights may overflow its dtype.",
                )
            return made
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

    def _run(
        self,
        output: str,
        phase: str,
        tokens: list[Ints],
        past: list[int],
        tables: NDArray[np.int32],
        choice: Mapping[str, NDArray[Any]],
    ) -> NDArray[Any]:
        rows = sum(map(len, tokens))
        name = self._plan.program_for(phase, rows, len(tokens), sum(past) + rows)
        assert name is not None
        symbols, inputs = pack(self._plan.programs[name], self._plan.page, tokens, past, tables, choice)
        return self._executor.run(name, symbols, inputs, (output,))[output]
