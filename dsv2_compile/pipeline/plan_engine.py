"""A native plan, whatever executes it, as an engine that the numeric check can drive. That the next tokens are those
of the logits is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.backends.cuda.host import Arrays
from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import NumericError
from dsv2_compile.plan.pack import cache_rows, pack
from dsv2_compile.plan.plan import Plan
from dsv2_compile.runtime.sampling import Draw, Sampling, columns, sample

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
DRAWN = (Sampling(temperature=0.8, top_k=20, top_p=0.9), Sampling(temperature=3.0))
EDGE = 1e-5
"""Random numbers and top_p this near to where the token changes may give either: a GPU sums in fp32."""


class Executor(Protocol):
    """`HostExecutor`, or that of a GPU."""

    slots: int

    def run(self, name: str, symbols: Mapping[str, int], inputs: Arrays) -> Arrays: ...

    def write_rows(self, at: Ints, rows: Floats) -> None: ...

    def read_rows(self, at: Ints) -> Floats: ...


class PlanEngine:
    """``executor`` runs ``plan``; its cache is used for one call after the other."""

    def __init__(self, plan: Plan, config: ModelConfig, executor: Executor, max_seq_len: int) -> None:
        self.plan, self.config, self.executor, self.max_seq_len = plan, config, executor, max_seq_len
        self.rng = np.random.default_rng(0)
        self._drawn: set[str] = set()

    def draws(self, name: str, count: int) -> list[Draw]:
        """The most likely token of ``count`` sequences; the first time that ``name`` runs, some by `DRAWN` instead:
        the interpreter takes long for that."""
        drawn = () if name in self._drawn else DRAWN[:count]
        self._drawn.add(name)
        return [rule.draw(self.rng) for rule in (*drawn, *[Sampling()] * (count - len(drawn)))]

    def program(self, phase: str) -> PlanCall:
        return PlanCall(self, phase)


@dataclass(frozen=True)
class PlanCall:
    """One phase. A call puts the given cache into pages in random order, runs the plan, and reads its new rows."""

    engine: PlanEngine
    phase: str

    def run(self, tokens: Ints, past: Ints, lengths: Ints, caches: list[Floats]) -> tuple[Floats, Floats]:
        """As `dsv2_compile.runtime.ort.Program.run`: logits [B, V] and new cache rows [layers, B, S, C]."""
        e, plan, c = self.engine, self.engine.plan, self.engine.config
        everywhere = np.arange(e.executor.slots)
        e.executor.write_rows(
            everywhere, np.full((c.num_hidden_layers, e.executor.slots, c.cache_dim), np.nan, np.float32)
        )
        tables = self._tables(past + lengths)
        name = plan.program_for(self.phase, int(lengths.sum()), len(lengths), int((past + lengths).sum()))
        if name is None:
            raise ValueError(f"no program of the plan holds {lengths.tolist()} new tokens")
        for b, count in enumerate(past.tolist()):
            at = self._rows(tables[b], 0, count)
            e.executor.write_rows(at, np.stack([values[b, :count] for values in caches]))
        ids = [t[:n] for t, n in zip(tokens, lengths.tolist(), strict=True)]
        draws = e.draws(name, len(lengths))
        symbols, inputs = pack(plan.programs[name], plan.page, ids, past.tolist(), tables, columns(draws))
        outputs = e.executor.run(name, symbols, inputs)
        logits: Floats = outputs["logits"]
        for b, (row, token, draw) in enumerate(zip(logits, outputs["next_tokens"].tolist(), draws, strict=True)):
            _require_token(f"{name}, sequence {b}", row, token, draw)
        rows = np.full((c.num_hidden_layers, *tokens.shape, c.cache_dim), np.nan, np.float32)
        for b, (start, count) in enumerate(zip(past.tolist(), lengths.tolist(), strict=True)):
            rows[:, b, :count] = e.executor.read_rows(self._rows(tables[b], start, start + count))
        return logits, rows

    def _tables(self, totals: Ints) -> NDArray[np.int32]:
        e = self.engine
        free = e.rng.permutation(e.executor.slots // e.plan.page)
        tables, taken = np.zeros((len(totals), e.plan.pages), np.int32), 0
        for table, total in zip(tables, totals.tolist(), strict=True):
            need = -(-total // e.plan.page)
            table[:need] = free[taken : taken + need]
            taken += need
        return tables

    def _rows(self, table: NDArray[np.int32], start: int, stop: int) -> NDArray[np.int64]:
        return cache_rows(table, np.arange(start, stop), self.engine.plan.page)


def _require_token(where: str, logits: Floats, token: int, draw: Draw) -> None:
    """NumericError unless ``token`` is what ``draw`` gives of ``logits`` [V], or -1 where they are no numbers."""
    if not np.isfinite(logits).all():
        expected = {-1}
    elif not draw.sampling.temperature:
        expected = {int(logits.argmax())}
    else:
        moved = list(product((0.0, -EDGE, EDGE), repeat=2))
        top_p = draw.sampling.top_p
        expected = {
            sample(logits, Draw(replace(draw.sampling, top_p=min(top_p + a, 1.0)), draw.uniform + b)) for a, b in moved
        }
    if token not in expected:
        raise NumericError(
            f"The plan's next token of {where} is {token}, its logits give {min(expected)}.",
            "Report this as a bug of the compiler.",
        )
