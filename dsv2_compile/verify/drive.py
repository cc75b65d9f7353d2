"""Feeds the sequences of a plan to an engine, through its own session, and records what its programs give.

The session is the one users get; between it and the engine's programs sits a tap that notes the cache rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import Dsv2Error, NotANumber
from dsv2_compile.progress import Progress, silent
from dsv2_compile.runtime.session import Session
from dsv2_compile.verify.plan import Call, Plan, synthetic

PHASES = ("prefill", "decode")
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class ProgramLike(Protocol):
    """One phase, as `dsv2_compile.runtime.ort.Program`."""

    def run(self, tokens: Ints, past: Ints, lengths: Ints, caches: list[Floats]) -> tuple[Floats, Floats]: ...


class EngineLike(Protocol):
    """What a session needs of an engine."""

    config: ModelConfig
    max_seq_len: int

    def program(self, phase: str) -> Any: ...


@dataclass
class Recording:
    """One path. ``rows`` [layers, N, C] where ``seen`` [N]; ``logits`` by flat position; ``phase`` [N] names the
    program that gave a row. ``padding_nan``: NaNs in padded rows, which nothing may read. ``stopped``: the
    session refused to go on because of NaN, what came before is recorded."""

    rows: Floats
    seen: NDArray[np.bool_]
    phase: NDArray[np.str_]
    logits: dict[int, Floats]
    padding_nan: int = 0
    stopped: bool = False


class Tap:
    """Stands for the engine before a `Session`, and records."""

    def __init__(self, engine: EngineLike, plan: Plan) -> None:
        self.config, self.max_seq_len = engine.config, engine.max_seq_len
        self._engine, self._plan = engine, plan
        total = plan.offsets[-1]
        self.record = Recording(
            np.full((self.config.num_hidden_layers, total, self.config.cache_dim), np.nan, np.float32),
            np.zeros(total, bool),
            np.full(total, "", "U8"),
            {},
        )

    def program(self, phase: str) -> ProgramLike:
        return _TappedProgram(self, self._engine.program(phase), phase)

    def note(self, phase: str, tokens: Ints, past: Ints, lengths: Ints, logits: Floats, rows: Floats) -> None:
        record, plan = self.record, self._plan
        for r, (start, count) in enumerate(zip(past.tolist(), lengths.tolist(), strict=True)):
            fed = tuple(tokens[r, :count].tolist())
            owners = [
                b
                for b, (ids, skip) in enumerate(zip(plan.tokens, plan.past, strict=True))
                if start >= skip and ids[start - skip : start - skip + count] == fed
            ]
            if len(owners) != 1:
                raise Dsv2Error(
                    f"The session fed {phase} tokens that are not those of one sequence at position {start}.",
                    "Report this as a bug of the runtime.",
                )
            at = plan.flat(owners[0], start)
            record.rows[:, at : at + count] = rows[:, r, :count]
            record.seen[at : at + count] = True
            record.phase[at : at + count] = phase
            record.logits[at + count - 1] = logits[r]
            record.padding_nan += int(np.isnan(rows[:, r, count:]).sum())


@dataclass
class _TappedProgram:
    tap: Tap
    program: ProgramLike
    phase: str

    def run(self, tokens: Ints, past: Ints, lengths: Ints, caches: list[Floats]) -> tuple[Floats, Floats]:
        logits, rows = self.program.run(tokens, past, lengths, caches)
        self.tap.note(self.phase, tokens, past, lengths, logits, rows)
        return logits, rows


def run_all(
    engine: EngineLike, plan: Plan, names: Sequence[str], progress: Progress = silent
) -> dict[str, list[Recording]]:
    """The named paths in one session, one after the other, so that slots are used again; runs by path."""
    out: dict[str, list[Recording]] = {}
    tap = Tap(engine, plan)
    with Session(cast(Any, tap), len(plan.near), max(plan.lengths[b] for b in plan.near)) as session:
        for done, name in enumerate(names):
            progress("engine paths", done, len(names))
            tap.record = Tap(engine, plan).record
            if name == "far":
                _run_far(tap, plan)
            else:
                _run(session, tap, plan, plan.paths[name])
            out.setdefault(name, []).append(tap.record)
            if tap.record.stopped:
                break
    return out


def _run(session: Session, tap: Tap, plan: Plan, calls: Sequence[Call]) -> None:
    try:
        for call in calls:
            logits = _call(session, plan, call)
            for b, stop, row in zip(call.sequences, call.stop, logits, strict=True):
                tap.record.logits[plan.flat(b, stop - 1)] = row
    except NotANumber:
        tap.record.stopped = True


def _call(session: Session, plan: Plan, call: Call) -> Floats:
    pieces = [plan.tokens[b][i:j] for b, i, j in zip(call.sequences, call.start, call.stop, strict=True)]
    if call.method == "decode":
        return session.decode([piece[0] for piece in pieces], call.slots)
    tokens = np.zeros((len(pieces), max(map(len, pieces))), np.int32)
    for row, piece in zip(tokens, pieces, strict=True):
        row[: len(piece)] = piece
    method = session.prefill if call.method == "prefill" else session.extend
    return method(tokens, [len(piece) for piece in pieces], call.slots)


def _run_far(tap: Tap, plan: Plan) -> None:
    """No session can be told its cache: the programs are called as it would call them."""
    for call in plan.paths["far"]:
        (b,), (start,), (stop,) = call.sequences, call.start, call.stop
        skip = plan.past[b]
        tokens = np.array([plan.tokens[b][start - skip : stop - skip]], np.int64)
        caches = [synthetic(tap.config, i, skip)[None] for i in range(tap.config.num_hidden_layers)]
        phase = "decode" if call.method == "decode" else "prefill"
        tap.program(phase).run(tokens, np.array([start]), np.array([stop - start]), caches)
