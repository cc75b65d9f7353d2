"""The plots of a report as SVG figures. They need no script; what a script needs to find a point stands in ``data-``.

Who cannot tell the colours apart has the shapes: statuses have rows of their own, the default is a diamond, the
winner a ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from dsv2_compile.autotune.report.axes import Axis, log_axis
from dsv2_compile.autotune.report.data import UNUSABLE, Agreement, Case, Effect, Group, Point, Series
from dsv2_compile.autotune.report.numbers import share, time

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 10, 34
_ROW = 11
"""Height of a row of marks for what is not OK."""
_KNOB_WIDTH, _WIDE, _FEW = 240, 480, 5
"""Width of a knob's plot: narrow for as many groups."""
_DOTS = 80
"""Of one group in a knob's plot."""
_GOLDEN = 0.618034
_FAR = 8
"""A bound this many times below the best is not drawn to scale: the times would be a flat line above it."""

Place = tuple[float, float]


def plots(case: Case, series: Series) -> list[str]:
    """Figures of one series: time by rank, best so far, then one for each knob."""
    told = provenance(series)
    scale = [p.microseconds for p in series.points if p.microseconds] or [case.bound]
    if case.bound > min(scale) / _FAR:
        scale.append(case.bound)
    first = [_rank(case, series, scale, told), _curve(case, series, scale, told)]
    return first + [_knob(case, series, effect, told) for effect in series.effects]


def provenance(series: Series) -> str:
    return series.judge if series.measured else "predicted, not measured"


def scatter(a: Agreement) -> str:
    """Predicted against measured; on the diagonal they are the same."""
    x = log_axis((p for p, _, _ in a.points), _LEFT, WIDTH - _RIGHT)
    y = log_axis((m for _, m, _ in a.points), HEIGHT - _BOTTOM, _TOP)
    low, high = max(x.low, y.low), min(x.high, y.high)
    body = [*_grid(x, y), _dots([(x.at(p), y.at(m)) for p, m, _ in a.points], "ok")]
    if low < high:
        body.append(_line("same", [(x.at(v), y.at(v)) for v in (low, high)]))
    for tick in x.ticks():
        body.append(_text(x.at(tick), HEIGHT - _BOTTOM + 14, time(tick)))
    body.append(_text(WIDTH - _RIGHT, HEIGHT - 4, "predicted", "end"))
    body.append(_text(_LEFT - 5, _TOP + 3, "measured", "end"))
    rho = "no rank correlation" if a.spearman is None else f"Spearman ρ = {a.spearman:.3f}"
    title = f"Predicted against measured: {rho} over {a.configs:,} configurations"
    return _figure("scatter", title, "", "".join(body), x, y)


def _rank(case: Case, series: Series, scale: Sequence[float], told: str) -> str:
    rows = [s for s in UNUSABLE if series.counts[s]]
    floor = HEIGHT - _BOTTOM - _ROW * len(rows)
    x = Axis(0.5, series.configs + 0.5, _LEFT, WIDTH - _RIGHT, log=False)
    y = log_axis(scale, floor - 4, _TOP)
    body = [*_grid(x, y), *_marks(series.points, [p.rank for p in series.points], rows, x, y, floor)]
    body.append(_level("bound", case.bound, y))
    body += [_placed(s, x.at(p.rank), y.at(p.microseconds)) for p, s in _named_points(case, series) if p.microseconds]
    body += _numbers(x, "configurations, fastest first")
    return _figure("rank", "Time of every configuration", told, "".join(body), x, y, floor)


def _curve(case: Case, series: Series, scale: Sequence[float], told: str) -> str:
    rows = [s for s in UNUSABLE if series.counts[s]]
    floor = HEIGHT - _BOTTOM - _ROW * len(rows)
    x = Axis(0.5, series.trials + 0.5, _LEFT, WIDTH - _RIGHT, log=False)
    y = log_axis(scale, floor - 4, _TOP)
    body = [*_grid(x, y), *_marks(series.points, [p.trial for p in series.points], rows, x, y, floor)]
    body.append(_level("bound", case.bound, y))
    if series.default and series.default.microseconds:
        body.append(_level("default", series.default.microseconds, y))
    corners: list[Place] = []
    for trial, best in series.curve:
        corners += [(x.at(trial), corners[-1][1])] if corners else []
        corners.append((x.at(trial), y.at(best)))
    if corners:
        body.append(_line("best", [*corners, (x.at(series.trials), corners[-1][1])]))
    body += _numbers(x, "trials, as they were made")
    return _figure("order", "Best so far", told, "".join(body), x, y, floor)


def _knob(case: Case, series: Series, effect: Effect, told: str) -> str:
    width = _KNOB_WIDTH if len(effect.groups) <= _FEW else _WIDE
    y = log_axis((p.microseconds for p in series.points if p.microseconds), HEIGHT - _BOTTOM - 14, _TOP)
    step = (width - _LEFT - 6) / len(effect.groups)
    x = Axis(0, len(effect.groups), _LEFT, width - 6, log=False)
    body = _grid(x, y)
    strips: list[Place] = []
    values = [(dict(p.config).get(effect.knob), p.microseconds) for p in series.points]
    named = [(dict(p.config).get(effect.knob), p.microseconds, shape) for p, shape in _named_points(case, series)]
    for i, group in enumerate(effect.groups):
        middle, half = _LEFT + (i + 0.5) * step, min(step * 0.36, 26)
        inside = [t for v, t in values if v is not None and t and group.low <= v <= group.high]
        strips += _strip(inside[:: -(-len(inside) // _DOTS) or 1], middle, half, y)
        body.append(_box(group, middle, half, y))
        here = [(t, s) for v, t, s in named if v is not None and t and group.low <= v <= group.high]
        body += [_placed(shape, middle, y.at(t)) for t, shape in here]
        name = str(group.low) if group.low == group.high else f"{group.low}…"
        body.append(_text(middle, HEIGHT - _BOTTOM + 2, name, "value"))
        body.append(_text(middle, HEIGHT - _BOTTOM + 15, f"{group.ok} ok"))
        if group.unusable:
            body.append(_text(middle, HEIGHT - _BOTTOM + 27, f"{group.unusable} not"))
    body.insert(1, _dots(strips, "ok faint"))
    title = f"{effect.knob}: {share(effect.explained)} of the variance"
    wide = " wide" if width == _WIDE else ""
    return _figure(f"knob{wide}", title, told, "".join(body), x, y, width=width)


def _strip(times: Sequence[float], middle: float, half: float, y: Axis) -> list[Place]:
    """Spread to the sides evenly, so that few hide each other."""
    return [(middle + half * (2 * (i * _GOLDEN % 1) - 1) * 0.8, y.at(t)) for i, t in enumerate(times)]


def _box(group: Group, middle: float, half: float, y: Axis) -> str:
    if group.quartiles is None or group.best is None:
        return ""
    low, median, high = map(y.at, group.quartiles)
    left, wide = middle - half, 2 * half
    told = f"{group.ok} ok, best {time(group.best)}, median {time(group.quartiles[1])}"
    return (
        f'<g class="box"><title>{told}</title>'
        f'<rect x="{left:.1f}" y="{high:.1f}" width="{wide:.1f}" height="{max(low - high, 0.5):.1f}"/>'
        f'<path class="median" d="M{left:.1f} {median:.1f}h{wide:.1f}"/>'
        f'<path class="least" d="M{middle:.1f} {y.at(group.best):.1f}l-5 7h10z"/></g>'
    )


def _marks(
    points: Sequence[Point], numbers: Sequence[int], rows: Sequence[str], x: Axis, y: Axis, floor: float
) -> list[str]:
    """A dot for each time, a tick in the row of its status for what has none."""
    placed = [(x.at(n), p) for n, p in zip(numbers, points, strict=True)]
    out = [_dots([(at, y.at(p.microseconds)) for at, p in placed if p.microseconds], "ok")]
    for i, status in enumerate(rows):
        top = floor + i * _ROW + 2
        ticks = "".join(f"M{at:.1f} {top:.0f}v{_ROW - 3}" for at, p in placed if p.status == status)
        out.append(f'<path class="mark {status}" d="{ticks}"/>')
        out.append(_text(_LEFT - 4, top + _ROW - 3, status, "end"))
    return out


def _named_points(case: Case, series: Series) -> Iterator[tuple[Point, str]]:
    """The default and the winner, where they were tried in this series, with the shape of each around 0, 0."""
    for p in series.points:
        if p.microseconds and p.default:
            yield p, '<path class="is-default" d="M0-6l6 6-6 6-6-6z"'
        if p.microseconds and case.winner and p.config == case.winner.config:
            yield p, '<circle class="is-winner" r="6.5"'


def _placed(shape: str, x: float, y: float) -> str:
    return f'{shape} transform="translate({x:.1f} {y:.1f})"/>'


def _grid(x: Axis, y: Axis) -> list[str]:
    left, right = min(x.start, x.end), max(x.start, x.end)
    lines = "".join(f"M{left:.0f} {y.at(t):.1f}H{right:.0f}" for t in y.ticks())
    out = [f'<path class="grid" d="{lines}"/>']
    out += [_text(left - 5, y.at(t) + 4, time(t), "end") for t in y.ticks()]
    return out


def _numbers(x: Axis, name: str) -> list[str]:
    ticks = [t for t in x.ticks() if t >= 1 and t == int(t)]
    shown = [t for t in ticks if x.at(t) < x.end - 24]
    out = [_text(x.at(t), HEIGHT - _BOTTOM + 14, f"{int(t):,}") for t in shown]
    return [*out, _text(x.end, HEIGHT - 4, name, "end")]


def _level(kind: str, value: float, y: Axis) -> str:
    if value < y.low:
        return _text(WIDTH - _RIGHT, y.start - 2, f"{kind} {time(value)}, far below", "end level")
    at = y.at(value)
    label = _text(WIDTH - _RIGHT, at - 4, kind, "end level")
    return f'<path class="line {kind}" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>{label}'


def _dots(places: Iterable[Place], kind: str) -> str:
    """All as one path: a stroke without length has a round cap and no more."""
    return f'<path class="dots {kind}" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)}"/>'


def _line(kind: str, places: Iterable[Place]) -> str:
    return f'<polyline class="line {kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'


def _text(x: float, y: float, content: str, kind: str = "") -> str:
    """Centred at ``x``, or ending there if ``kind`` says so."""
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.0f}" y="{y:.0f}">{escape(content)}</text>'


def _figure(
    kind: str, title: str, told: str, body: str, x: Axis, y: Axis, floor: float = 0.0, width: int = WIDTH
) -> str:
    marks = " ".join(f"{v:.6g}" for v in (*x.line, *y.line, floor))
    said = f" <em>{escape(told)}</em>" if told else ""
    name = escape(", ".join(filter(None, (title, told))))
    return (
        f'<figure class="plot {kind}" data-plot="{kind.split()[0]}" data-marks="{marks}">'
        f"<figcaption>{escape(title)}{said}</figcaption>"
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{name}">{body}</svg></figure>'
    )
