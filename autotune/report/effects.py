"""What each knob does to the time: configurations grouped by its value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dsv2_compile.autotune.report.data import Effect, Group, Point
from dsv2_compile.autotune.report.stats import explained, quartiles

MOST_KNOBS = 8
MOST_GROUPS = 10


def effects(points: Sequence[Point]) -> tuple[Effect, ...]:
    """Of the knobs that took more than one value, the strongest first; at most `MOST_KNOBS`."""
    by_knob: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        for knob, value in point.config:
            by_knob[knob][value].append(point)
    found = [_effect(knob, values) for knob, values in by_knob.items() if len(values) > 1]
    return tuple(sorted(found, key=lambda e: -e.explained)[:MOST_KNOBS])


def _effect(knob: str, values: dict[int, list[Point]]) -> Effect:
    """Neighbouring values share a group where there are too many."""
    size = -(-len(values) // MOST_GROUPS)
    ordered = sorted(values)
    spans = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    groups = [(span, [p for v in span for p in values[v]]) for span in spans]
    times = [[p.microseconds for p in points if p.microseconds] for _, points in groups]
    return Effect(
        knob,
        explained(times),
        tuple(
            Group(
                low=span[0],
                high=span[-1],
                ok=len(ts),
                unusable=len(points) - len(ts),
                best=min(ts, default=None),
                quartiles=quartiles(ts) if ts else None,
            )
            for (span, points), ts in zip(groups, times, strict=True)
        ),
    )
