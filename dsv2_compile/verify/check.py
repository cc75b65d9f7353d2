"""Checks an engine against golden data, and optionally golden data and weights against the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.verify import golden as goldens
from dsv2_compile.verify.drive import EngineLike, Recording, run_all
from dsv2_compile.verify.golden import Golden
from dsv2_compile.verify.metrics import Array, errors, top1
from dsv2_compile.verify.progress import Progress, silent
from dsv2_compile.verify.report import Agreement, Consistency, Report, Section
from dsv2_compile.verify.rule import Verdict, diagnosis, eps, judge, tolerance

if TYPE_CHECKING:
    from dsv2_compile.checkpoint import Checkpoint

Mask = NDArray[np.bool_]

ORACLE_TOLERANCE = {"float64": 2.0**-40, "float32": 2.0**-11}
"""How far a fresh oracle may be from the stored one: other processors sum in other orders. Far above the
rounding noise of the oracle's dtype in any depth of model, far below what another weight would change."""


def verify_engine(
    path: str | Path,
    checkpoint: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Check the engine at ``path`` by its golden data; with ``checkpoint`` these are computed afresh as well.

    Raises what `Engine.load` raises, and IntegrityError for golden data that do not fit the engine. A failed
    check is not raised: see `Report.passed` and `Report.require`.
    """
    import warnings

    from dsv2_compile.runtime import Engine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an engine being verified is not verified yet
        engine = Engine.load(path, threads)
    with engine:
        golden = goldens.read(Path(path), engine.config)
        report = check(engine, engine.config, golden, str(Path(path).name), progress)
    if checkpoint is None:
        return report
    fresh = goldens.compute(engine.config, checkpoint, golden.dtype, golden.plan, progress)
    return report.with_oracle(oracle_difference(golden, fresh), ORACLE_TOLERANCE[golden.oracle_dtype])


def oracle_difference(stored: Golden, fresh: Golden) -> float:
    """Largest relative L2 difference over the rows of each layer and the logits."""
    pairs = [*zip(stored.oracle_rows, fresh.oracle_rows, strict=True), (stored.oracle_logits, fresh.oracle_logits)]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def check(engine: EngineLike, config: ModelConfig, golden: Golden, name: str, progress: Progress = silent) -> Report:
    """Run every path of the plan, ``batch`` twice, and judge what came out."""
    plan = golden.plan
    names = [*plan.paths, "batch"]
    runs = run_all(engine, plan, names, progress)
    sections = tuple(s for path, records in runs.items() for s in _sections(config, golden, path, records[0]))
    findings: dict[str, str] = {}
    for path in runs:
        for phase in dict.fromkeys(s.phase for s in sections if s.path == path):
            verdicts = {s.layer: s.verdict for s in sections if (s.path, s.phase) == (path, phase)}
            found = diagnosis(verdicts, config)
            if found:
                findings[f"{path}, {phase}"] = found[1]
    return Report(
        engine=name,
        dtype=golden.dtype,
        oracle_dtype=golden.oracle_dtype,
        sections=sections,
        findings=findings,
        top1=tuple(_agreement(config, golden, path, records[0]) for path, records in runs.items()),
        consistency=tuple(
            _consistency(runs["batch"][0], records[0], path)
            for path, records in runs.items()
            if path not in ("batch", "far")
        ),
        repeatable=len(runs["batch"]) == 2 and _same(*runs["batch"]),
        padding_nan=sum(r.padding_nan for records in runs.values() for r in records),
        routing=golden.routing,
    )


def _sections(config: ModelConfig, golden: Golden, path: str, record: Recording) -> list[Section]:
    """One section per phase and probe: the rows of each layer, and the logits (layer None)."""
    out = []
    for phase in dict.fromkeys(record.phase[record.seen].tolist()):
        mine = record.seen & (record.phase == phase)
        for layer in range(config.num_hidden_layers):
            values = record.rows[layer], golden.oracle_rows[layer], golden.eager_rows[layer]
            out.append(_section(config, golden, path, phase, layer, mine, golden.clean[layer], values))
        at, values = _logits(golden, record, mine)
        if len(at):
            every = np.ones(len(at), bool)
            out.append(_section(config, golden, path, phase, None, every, golden.clean[-1][at], values))
    return out


def _logits(golden: Golden, record: Recording, mine: Mask) -> tuple[NDArray[np.int64], tuple[Array, Array, Array]]:
    """Positions in ``mine`` with logits, and there those of the engine, the oracle and eager mode."""
    probes = golden.plan.probes
    index = [i for i, p in enumerate(probes) if p in record.logits and mine[p]]
    at = np.array([probes[i] for i in index], np.int64)
    actual = np.array([record.logits[p] for p in at.tolist()]).reshape(len(at), -1)
    return at, (actual, golden.oracle_logits[index], golden.eager_logits[index])


def _section(
    config: ModelConfig,
    golden: Golden,
    path: str,
    phase: str,
    layer: int | None,
    mine: Mask,
    clean: Mask,
    values: tuple[Array, Array, Array],
) -> Section:
    """Judged on the rows no flip can reach, the others apart. Where a flip may reach all, all are judged
    against an e0 that has flips of its own, and the section says so."""
    actual, exact, eager = values
    allowance = eps(config, layer, golden.dtype)

    def verdict(rows: Mask) -> Verdict:
        return judge(errors(actual[rows], exact[rows]), errors(eager[rows], exact[rows]), allowance)

    judged, apart = mine & clean, mine & ~clean
    if not judged.any():
        return Section(path, phase, layer, verdict(mine), True, None)
    return Section(path, phase, layer, verdict(judged), False, verdict(apart) if apart.any() else None)


def _agreement(config: ModelConfig, golden: Golden, path: str, record: Recording) -> Agreement:
    """Top-1 agreement, stable where the margin is beyond what the rule lets two logits move."""
    at, (actual, exact, eager) = _logits(golden, record, record.seen)
    clean = golden.clean[-1][at]
    rows = clean if clean.any() else np.ones(len(at), bool)
    limit = tolerance(errors(eager[rows], exact[rows]), eps(config, None, golden.dtype))["max_abs"]
    return Agreement(path, top1(actual[rows], exact[rows], limit), len(at) - int(rows.sum()))


def _consistency(base: Recording, other: Recording, path: str) -> Consistency:
    """Rows and logits of the same positions by two paths. Each is held to the oracle, so this is told, not judged."""
    rows = base.seen & other.seen
    a, b = base.rows[:, rows], other.rows[:, rows]
    shared = sorted(base.logits.keys() & other.logits.keys())
    pairs = [(a, b), *((base.logits[p], other.logits[p]) for p in shared)]
    difference = max(float(np.linalg.norm(x - y)) / max(float(np.linalg.norm(x)), 1e-300) for x, y in pairs)
    return Consistency(path, int(rows.sum()), len(shared), difference, all(np.array_equal(x, y) for x, y in pairs))


def _same(a: Recording, b: Recording) -> bool:
    """Bit for bit, NaN included."""
    logits = a.logits.keys() == b.logits.keys() and all(
        a.logits[p].tobytes() == b.logits[p].tobytes() for p in a.logits
    )
    return logits and a.rows.tobytes() == b.rows.tobytes()
