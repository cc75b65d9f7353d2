"""Checks an engine against golden data, and optionally golden data and weights against the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.engine import integrity
from dsv2_compile.errors import UsageError
from dsv2_compile.progress import Progress, silent
from dsv2_compile.verify import diagnosis
from dsv2_compile.verify import golden as goldens
from dsv2_compile.verify.diagnosis import Finding, Verdicts
from dsv2_compile.verify.drive import PHASES, EngineLike, Recording, run_all
from dsv2_compile.verify.golden import Golden
from dsv2_compile.verify.metrics import Array, errors, figures, row_errors, top1, upper
from dsv2_compile.verify.report import Agreement, Consistency, Level, Report, Section
from dsv2_compile.verify.rule import Verdict, eps, judge, tolerance, typical

if TYPE_CHECKING:
    from dsv2_compile.checkpoint import Checkpoint

Mask = NDArray[np.bool_]

Opener = Callable[[Path, int | None], AbstractContextManager[EngineLike]]


def _load(root: Path, threads: int | None) -> AbstractContextManager[EngineLike]:
    import warnings

    from dsv2_compile.runtime import Engine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an engine being verified is not verified yet
        loaded: AbstractContextManager[EngineLike] = cast(Any, Engine.load(root, threads))
    return loaded


ORACLE_TOLERANCE = {"float64": 2.0**-40, "float32": 2.0**-11}
"""How far a fresh oracle may be from the stored one: other processors sum in other orders. Far above the
rounding noise of the oracle's dtype in any depth of model, far below what another weight would change."""


def verify_engine(
    path: str | Path,
    checkpoint: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    opener: Opener = _load,
    names: Sequence[str] | None = None,
) -> Report:
    """Check the engine at ``path`` by its golden data; with ``checkpoint`` these are computed afresh as well.

    ``opener``: what runs it, the runtime unless given. ``names``: the paths of the plan to take, see `check`.
    Raises what `Engine.load` raises, IntegrityError for golden data that do not fit the engine, and UsageError if
    it has none and no ``checkpoint`` is given. A failed check is not raised: see `Report.passed`, `Report.require`.
    """
    root = Path(path)
    with opener(root, threads) as engine:
        name, m = root.name, integrity.read_manifest(root)
        if goldens.DATA in m.files:
            golden = goldens.read(Path(path), engine.config)
        elif checkpoint is not None:
            golden = goldens.make(
                engine.config, checkpoint, m.dtype, m.max_batch_size, m.max_seq_len, progress=progress
            )
            return check(engine, engine.config, golden, name, progress, names)
        else:
            raise UsageError(
                f"{path} holds no golden data: it was built without the numeric check.",
                "Give the checkpoint it was built from, or rebuild it.",
            )
        report = check(engine, engine.config, golden, name, progress, names)
    if checkpoint is None:
        return report
    fresh = goldens.compute(engine.config, checkpoint, golden.dtype, golden.plan, progress)
    return report.with_oracle(oracle_difference(golden, fresh), ORACLE_TOLERANCE[golden.oracle_dtype])


def oracle_difference(stored: Golden, fresh: Golden) -> float:
    """Largest relative L2 difference over the rows of each layer and the logits."""
    pairs = [*zip(stored.oracle_rows, fresh.oracle_rows, strict=True), (stored.oracle_logits, fresh.oracle_logits)]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def check(
    engine: EngineLike,
    config: ModelConfig,
    golden: Golden,
    name: str,
    progress: Progress = silent,
    names: Sequence[str] | None = None,
) -> Report:
    """Run the paths ``names`` that the plan has, all and ``batch`` twice unless given, and judge what came out."""
    chosen = [n for n in names or [*golden.plan.paths, "batch"] if n in golden.plan.paths]
    runs = run_all(engine, golden.plan, chosen, progress)
    first = {path: records[0] for path, records in runs.items()}
    sections = tuple(s for path, record in first.items() for s in _sections(config, golden, path, record))
    levels = _levels(config, golden, list(first.values()))
    return Report(
        engine=name,
        dtype=golden.dtype,
        oracle_dtype=golden.oracle_dtype,
        sections=sections,
        levels=levels,
        findings=(*_findings(config, golden, sections, first), *_typical_findings(config, sections, levels)),
        top1=tuple(_agreement(config, golden, path, record) for path, record in first.items()),
        consistency=tuple(
            _consistency(first["batch"], record, path) for path, record in first.items() if path not in ("batch", "far")
        ),
        repeatable=_same(*runs["batch"]) if len(runs["batch"]) == 2 else None,
        padding_nan=sum(r.padding_nan for records in runs.values() for r in records),
        routing=golden.routing,
        spread=golden.spread,
    )


def _sections(config: ModelConfig, golden: Golden, path: str, record: Recording) -> list[Section]:
    """One section per phase and probe: the rows of each layer, and the logits (layer None)."""
    out = []
    for phase in dict.fromkeys(record.phase[record.seen].tolist()):
        mine = record.seen & (record.phase == phase)
        for layer in range(config.num_hidden_layers):
            values = record.rows[layer], golden.oracle_rows[layer], golden.e0_rows[:, layer]
            out.append(_section(config, golden, path, phase, layer, mine, golden.clean[layer], values))
        index = _probed(golden, record, mine)
        if index.any():
            values = _logits(golden, record, index), golden.oracle_logits, golden.e0_logits
            out.append(_section(config, golden, path, phase, None, index, _clean_probes(golden), values))
    return out


def _probed(golden: Golden, record: Recording, mine: Mask) -> Mask:
    """Which of the probes have logits in ``record``, among the positions ``mine``."""
    return np.array([p in record.logits and bool(mine[p]) for p in golden.plan.probes])


def _logits(golden: Golden, record: Recording, index: Mask) -> Array:
    """[probes, vocab], NaN but for the probes ``index``."""
    out = np.full(golden.oracle_logits.shape, np.nan, np.float32)
    for i in np.flatnonzero(index):
        out[i] = record.logits[golden.plan.probes[i]]
    return out


def _clean_probes(golden: Golden) -> Mask:
    clean: Mask = golden.clean[-1][list(golden.plan.probes)]
    return clean


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
    actual, exact, e0 = values
    allowance = eps(config, layer, golden.dtype)

    def verdict(rows: Mask) -> Verdict:
        return judge(errors(actual[rows], exact[rows]), figures(e0[:, rows]), golden.spread, allowance)

    judged, apart = mine & clean, mine & ~clean
    if not judged.any():
        return Section(path, phase, layer, verdict(mine), True, None)
    return Section(path, phase, layer, verdict(judged), False, verdict(apart) if apart.any() else None)


def _levels(config: ModelConfig, golden: Golden, records: list[Recording]) -> tuple[Level, ...]:
    """By program and probe, the typical error over all paths, on the rows no flip can reach."""
    out = []
    for phase in PHASES:
        for layer in [*range(config.num_hidden_layers), None]:
            error, e0 = [], []
            for record in records:
                mine = record.seen & (record.phase == phase)
                if layer is None:
                    rows = _probed(golden, record, mine) & _clean_probes(golden)
                    actual, exact, eager = _logits(golden, record, rows), golden.oracle_logits, golden.e0_logits
                else:
                    rows = mine & golden.clean[layer]
                    actual, exact, eager = record.rows[layer], golden.oracle_rows[layer], golden.e0_rows[:, layer]
                error.append(row_errors(actual[rows], exact[rows])[0])
                e0.append(eager[0, rows])
            if sum(map(len, error)):
                part = typical(np.concatenate(error), np.concatenate(e0), eps(config, layer, golden.dtype))
                out.append(Level(phase, layer, sum(map(len, error)), part))
    return tuple(out)


def _typical_findings(
    config: ModelConfig, sections: tuple[Section, ...], levels: tuple[Level, ...]
) -> Iterator[Finding]:
    """For programs that no path finds anything wrong with, though their error is too large on average."""
    for phase in PHASES:
        if any(s.phase == phase and not s.verdict.passed for s in sections):
            continue
        bad = [level for level in levels if level.phase == phase and not level.passed]
        if bad:
            yield diagnosis.too_large(phase, bad[0].layer, bad[0].ratio, config)


def _findings(
    config: ModelConfig, golden: Golden, sections: tuple[Section, ...], records: Mapping[str, Recording]
) -> tuple[Finding, ...]:
    verdicts: dict[tuple[str, str], dict[int | None, Verdict]] = {}
    for s in sections:
        verdicts.setdefault((s.path, s.phase), {})[s.layer] = s.verdict
    right = [where for where, v in verdicts.items() if all(x.passed for x in v.values())]
    found = []
    for (path, phase), mine in verdicts.items():
        half = _wrong_half(config, golden, records[path], phase, mine)
        beside = _beside(path, phase, right)
        found.append(diagnosis.finding(path, phase, mine, config, half, beside))
    return tuple(f for f in found if f)


def _beside(path: str, phase: str, right: list[tuple[str, str]]) -> str:
    """What is right where ``phase`` of ``path`` is wrong: the other program, or the same sequence alone."""
    other = {"prefill": "decode", "decode": "prefill"}[phase]
    if phase == "decode" and (path, other) in right:
        return "prefill is right: look at the decode program, or at how the cache is stored and shown to it"
    if path in ("batch", "chunks") and ("single", phase) in right:
        return "a single sequence is right: look at padding, slots and the rows of a batch"
    return "decode is right: look at the prefill program" if (path, other) in right else ""


def _wrong_half(config: ModelConfig, golden: Golden, record: Recording, phase: str, verdicts: Verdicts) -> str:
    """``latent`` or ``key`` if, in the first bad layer, the other half of the rows is within the limit."""
    bad = diagnosis.first_bad(verdicts, config)
    if bad is None or "nonfinite" in verdicts[bad].failed:
        return ""
    rows = record.seen & (record.phase == phase)
    rows &= golden.clean[bad] if (rows & golden.clean[bad]).any() else rows
    a, b = record.rows[bad][rows], golden.oracle_rows[bad][rows]
    limit, cut = verdicts[bad].limits["rel_l2_p95"], config.kv_lora_rank
    off = []
    for half, columns in (("latent", slice(None, cut)), ("key", slice(cut, None))):
        size = np.maximum(np.linalg.norm(b[:, columns], axis=1), np.finfo(np.float64).tiny)
        if upper(np.linalg.norm(a[:, columns] - b[:, columns], axis=1) / size) > 2 * limit:
            off.append(half)
    return off[0] if len(off) == 1 else ""


def _agreement(config: ModelConfig, golden: Golden, path: str, record: Recording) -> Agreement:
    """Top-1 agreement, stable where the margin is beyond what the rule lets two logits move."""
    shown, clean = _probed(golden, record, record.seen), _clean_probes(golden)
    rows = shown & clean if (shown & clean).any() else shown
    actual = np.array([record.logits[golden.plan.probes[i]] for i in np.flatnonzero(rows)])
    exact = golden.oracle_logits[rows]
    e0, largest = figures(golden.e0_logits[:, rows]), float(np.abs(exact).max())
    limits = tolerance(e0, golden.spread, eps(config, None, golden.dtype), largest)
    return Agreement(path, top1(actual, exact, limits["max_abs"]), int(shown.sum() - rows.sum()))


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
