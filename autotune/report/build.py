"""A report from trials and records: grouped, ranked, counted, and bounded in size."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dsv2_compile.autotune.base import Base
from dsv2_compile.autotune.record import MEASURED, PREDICTED, PROVENANCES, Key, Record
from dsv2_compile.autotune.report.data import UNUSABLE, Agreement, Case, Part, Point, Report, Series, Totals, Winner
from dsv2_compile.autotune.report.effects import effects
from dsv2_compile.autotune.report.read import Entry, Pairs, Trials
from dsv2_compile.autotune.report.stats import geometric_mean, spearman, thinned
from dsv2_compile.autotune.trial import OK, STATUSES

MOST_CASES = 300
MOST_POINTS = 30_000
"""Of all series together."""
_FEWEST, _MOST = 60, 2000
"""Points of one series."""
_REASONS, _STEPS, _FIRST = 12, 200, 50
NEAR = 1.05

Reasons = tuple[tuple[str, str, int], ...]


def report(trials: Trials, base: Base, files: Sequence[str], targets: Sequence[str] = ()) -> Report:
    """``targets``: those to report, all if there are none. Of what differs in source or compiler alone, the newest."""
    wanted = set(targets)
    groups: dict[Key, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in trials.entries:
        if not wanted or entry.key.target in wanted:
            groups[entry.key][entry.judge].append(entry)
    records = {k: r for k, r in base.records.items() if not wanted or k.target in wanted}
    created = {k: max(e.created for es in judges.values() for e in es) for k, judges in groups.items()}
    for key, record in records.items():
        created[key] = max(created.get(key, 0), record.created)
    kept = _newest(created)
    kept, left_out = _most_tried(kept, groups)
    judges = {key: _judges(groups[key]) for key in kept}
    count = sum(map(len, judges.values()))
    most = max(_FEWEST, min(_MOST, MOST_POINTS // max(count, 1)))
    cases = _told_apart([_case(key, judges[key], records.get(key), created[key], most) for key in kept])
    shown = sum(s.trials for c in cases for s in c.series)
    everything = sum(len(es) for js in groups.values() for es in js.values())
    hidden = sum(len(es) for key in left_out for es in groups[key].values())
    refused = Counter(trials.refused)
    refused.update(re.sub(r"^\S+: ", "record: ", r) for r in base.refused)
    refused += Counter({"record: its configuration means something else by now": len(base.stale)})
    return Report(
        files=tuple(files),
        damaged=trials.damaged + base.damaged,
        refused=tuple(refused.most_common(_REASONS)),
        superseded=everything - hidden - shown,
        left_out=len(left_out),
        parts=tuple(_part(t, [c for c in cases if c.key.target == t]) for t in dict.fromkeys(k.target for k in kept)),
    )


def _newest(created: dict[Key, int]) -> list[Key]:
    """Of keys for the same call the newest, in the order they came."""
    found: dict[Key, Key] = {}
    for key in created:
        call = replace(key, source="", triton="", ptxas="")
        if call not in found or created[key] >= created[found[call]]:
            found[call] = key
    return list(found.values())


def _most_tried(keys: list[Key], groups: dict[Key, dict[str, list[Entry]]]) -> tuple[list[Key], list[Key]]:
    if len(keys) <= MOST_CASES:
        return keys, []
    ranked = sorted(keys, key=lambda k: -sum(map(len, groups[k].values())) if k in groups else 0)
    kept = set(ranked[:MOST_CASES])
    return [k for k in keys if k in kept], ranked[MOST_CASES:]


def _judges(found: dict[str, list[Entry]]) -> list[list[Entry]]:
    """Trials by judge: measured before predicted, the newest first; of predictions the newest model's alone."""
    order = lambda es: (PROVENANCES.index(es[0].provenance), -es[-1].created)
    ranked = sorted(found.values(), key=order)
    measured = [es for es in ranked if es[0].provenance == MEASURED]
    return measured + [es for es in ranked if es[0].provenance == PREDICTED][:1]


def _case(key: Key, judges: list[list[Entry]], record: Record | None, created: int, most: int) -> Case:
    lasting = [_last(entries) for entries in judges]
    series = tuple(_series(es, points, record, most) for es, points in zip(judges, lasting, strict=True))
    bound = judges[0][-1].bound if judges else record.bound if record else 0.0
    agreement = None
    if len(series) > 1 and series[0].measured and not series[-1].measured:
        agreement = _agreement(series[0].judge, lasting[0], series[-1].judge, lasting[-1], most)
    return Case(
        key=key,
        what=judges[0][-1].what if judges else "",
        where=", ".join(f"{n} {v}" for n, v in key.sizes) or "any size",
        bound=bound,
        created=created,
        series=series,
        agreement=agreement,
        winner=_winner(series, record, bound),
    )


def _told_apart(cases: Sequence[Case]) -> list[Case]:
    """With the dims, where nothing else differs."""
    same_name: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for c in cases:
        same_name[c.key.target, c.key.kernel, c.what, c.where].append(c)
    differ = {
        name: {n for c in same for n, v in c.key.dims if any(dict(o.key.dims).get(n) != v for o in same)}
        for name, same in same_name.items()
    }
    return [
        replace(c, where=", ".join([c.where, *(f"{n} {v}" for n, v in c.key.dims if n in names)]))
        for c in cases
        for names in [differ[c.key.target, c.key.kernel, c.what, c.where]]
    ]


def _last(entries: Sequence[Entry]) -> list[Point]:
    """The last trial of each configuration, ranked; the default first of those as fast."""
    last: dict[Pairs, tuple[int, Entry]] = {}
    for number, entry in enumerate(entries, 1):
        last[entry.config] = number, entry
    rank = lambda e: (STATUSES.index(e.status), e.microseconds or 0.0, not e.default, e.config)
    order = sorted(last.values(), key=lambda found: rank(found[1]))
    return [
        Point(n, rank, e.status, e.microseconds, e.config, e.default, e.reason, e.facts)
        for rank, (n, e) in enumerate(order, 1)
    ]


def _series(entries: Sequence[Entry], points: list[Point], record: Record | None, most: int) -> Series:
    ok = [p for p in points if p.status == OK]
    best = ok[0] if ok else None
    least = best.microseconds or 0.0 if best else 0.0
    taken = record.config if record else None
    curve: list[tuple[int, float]] = []
    for number, entry in enumerate(entries, 1):
        if entry.microseconds is not None and (not curve or entry.microseconds < curve[-1][1]):
            curve.append((number, entry.microseconds))
    shown = thinned(points, most, lambda p: p.default or p.config == taken or (p.status == OK and p.rank <= _FIRST))
    return Series(
        judge=entries[0].judge,
        provenance=entries[0].provenance,
        trials=len(entries),
        seconds=sum(e.seconds for e in entries),
        configs=len(points),
        counts={s: sum(p.status == s for p in points) for s in STATUSES},
        reasons=_reasons((p.status, alike(p.reason), 1) for p in points if p.status != OK),
        near=sum((p.microseconds or 0.0) <= least * NEAR for p in ok),
        default=next((p for p in points if p.default), None),
        best=best,
        curve=tuple(thinned(curve, _STEPS, lambda step: step in (curve[0], curve[-1]))),
        effects=effects(points),
        points=tuple(shown),
    )


def alike(reason: str) -> str:
    """``reason`` without what differs from one configuration to the next: its numbers."""
    return re.sub(r"\b\d[\d.,_]*\b", "N", reason) or "no reason given"


def _reasons(found: Iterable[tuple[str, str, int]]) -> Reasons:
    """The most frequent of each status; the others as one."""
    counts: dict[str, Counter[str]] = {s: Counter() for s in UNUSABLE}
    for status, reason, n in found:
        counts[status][reason] += n
    out = []
    for status, reasons in counts.items():
        common = reasons.most_common(_REASONS)
        rest = sum(reasons.values()) - sum(n for _, n in common)
        out += [(status, reason, n) for reason, n in common] + ([(status, "other reasons", rest)] if rest else [])
    return tuple(out)


def _winner(series: Sequence[Series], record: Record | None, bound: float) -> Winner | None:
    """The record, unless there are better founded trials."""
    found = [
        Winner(
            "trial", s.provenance, s.judge, s.best.config, s.best.microseconds or 0.0,
            s.default.microseconds if s.default else None, bound, (),
        )
        for s in series
        if s.best
    ]  # fmt: skip
    if record:
        judge = f"{MEASURED} on {record.device}" if record.device else f"{PREDICTED}, model {record.model}"
        times = record.microseconds, record.default_microseconds, record.bound
        found.insert(0, Winner("record", record.provenance, judge, record.config, *times, record.checks))
    return min(found, key=lambda w: PROVENANCES.index(w.provenance), default=None)


def _agreement(
    measured_by: str, measured: Iterable[Point], predicted_by: str, predicted: Iterable[Point], most: int
) -> Agreement | None:
    found = {p.config: (p.microseconds, p.rank) for p in measured if p.microseconds}
    pairs = [(p.microseconds, *found[p.config]) for p in predicted if p.microseconds and p.config in found]
    if not pairs:
        return None
    best = min(m for _, m, _ in pairs)
    first = [m for _, m, _ in sorted(pairs)]
    return Agreement(
        predicted_by=predicted_by,
        measured_by=measured_by,
        configs=len(pairs),
        spearman=spearman([p for p, _, _ in pairs], [m for _, m, _ in pairs]),
        regret=first[0] / best - 1,
        regret_of_5=min(first[:5]) / best - 1,
        scale=statistics.median(m / p for p, m, _ in pairs),
        points=tuple(thinned(pairs, most)),
    )


def _part(target: str, cases: Sequence[Case]) -> Part:
    mains = [c.main for c in cases if c.main]
    winners = [c.winner for c in cases if c.winner]
    correlations = [c.agreement.spearman for c in cases if c.agreement and c.agreement.spearman is not None]
    totals = Totals(
        cases=len(cases),
        measured=sum(w.provenance == MEASURED for w in winners),
        trials=sum(s.trials for c in cases for s in c.series),
        configs=sum(s.configs for s in mains),
        counts={s: sum(m.counts[s] for m in mains) for s in STATUSES},
        reasons=_reasons(r for m in mains for r in m.reasons),
        seconds=sum(s.seconds for c in cases for s in c.series),
        gain=geometric_mean(w.gain for w in winners if w.gain),
        of_bound=geometric_mean(w.of_bound for w in winners),
        spearman=statistics.median(correlations) if correlations else None,
    )
    return Part(target, totals, tuple(cases))
