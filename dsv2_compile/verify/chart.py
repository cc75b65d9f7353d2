"""SVG panels of a report: error by layer on a logarithmic axis, with eager mode and the limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from dsv2_compile.verify.report import Level, Section

WIDTH, HEIGHT = 440, 214
GAP = 20
COLUMNS = 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 30, 26
_LABELS = 12
"""Layers named below an axis, at most."""
STYLE = (
    ".axis{stroke:var(--line)}.tick{fill:var(--soft);font-size:11px}.name{fill:var(--ink);font-size:13px;"
    "font-weight:600}.error{fill:var(--blue)}.bad{fill:var(--red)}.e0{fill:none;stroke:var(--soft);stroke-width:1.5}"
    ".limit{fill:none;stroke:var(--red);stroke-width:1.5;stroke-dasharray:5 4}"
)
LIGHT = "--ink:#1b1f24;--soft:#6b727c;--line:#e3e6ea;--back:#fff;--blue:#2166b0;--red:#c0392b;--green:#1a7f45"
DARK = "--ink:#e6e9ed;--soft:#9aa3ae;--line:#333a43;--back:#15181c;--blue:#6cb0f5;--red:#f07a6a;--green:#5fce8d"

Scale = tuple[int, int]
"""Powers of ten at the lower and the upper end of an axis."""


@dataclass(frozen=True)
class Point:
    """One probe: a layer, or the logits. ``told``: what shows when one points at it."""

    label: str
    value: float
    e0: float | None
    limit: float
    passed: bool
    told: str


def section_points(sections: Iterable[Section]) -> list[Point]:
    """Relative L2 errors of one path and phase, by layer, the logits last."""
    ordered = sorted(sections, key=lambda s: math.inf if s.layer is None else s.layer)
    return [_section_point(s) for s in ordered]


def _section_point(s: Section) -> Point:
    v = s.verdict
    error, e0, limit = v.error.rel_l2_p95, v.e0.rel_l2_p95, v.limits["rel_l2_p95"]
    told = f"{s.probe}: {error:.2e}, eager mode {e0:.2e}, limit {limit:.2e}, {v.error.rows} rows"
    told += ", a router flip may reach them" if s.flips else ""
    told += "" if v.passed else f"; over the limit: {', '.join(v.failed)}"
    return Point("logits" if s.layer is None else str(s.layer), error, e0, limit, v.passed, told)


def level_points(levels: Iterable[Level]) -> list[Point]:
    """Typical errors of one phase, as parts of their limit."""
    out = []
    for level in levels:
        label = "logits" if level.layer is None else str(level.layer)
        told = (
            f"{label if level.layer is None else f'layer {label}'}: {level.ratio:.2f} of the limit, {level.rows} rows"
        )
        out.append(Point(label, level.ratio, None, 1.0, level.passed, told))
    return out


def scale(points: Iterable[Point]) -> Scale:
    """The decades that hold all values."""
    values = [v for p in points for v in (p.value, p.e0, p.limit) if v is not None and math.isfinite(v) and v > 0]
    low, high = math.floor(math.log10(min(values, default=1e-7))), math.ceil(math.log10(max(values, default=1.0)))
    return low, max(high, low + 1)


def panel(title: str, points: Sequence[Point], decades: Scale) -> str:
    """One chart as an SVG group, WIDTH x HEIGHT. Zero lies on the lower edge, what is not finite on the upper."""
    low, high = decades
    step = (WIDTH - _LEFT - _RIGHT - 16) / max(len(points) - 1, 1)

    def x(i: int) -> float:
        return _LEFT + 8 + i * step

    def y(value: float) -> float:
        power = high if not math.isfinite(value) else math.log10(value) if value > 0 else low
        share = (min(max(power, low), high) - low) / (high - low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text class="name" x="{_LEFT}" y="16">{escape(title)}</text>', *_grid(decades, y)]
    parts.append(_line("limit", [(x(i), y(p.limit)) for i, p in enumerate(points)]))
    parts.append(_line("e0", [(x(i), y(p.e0)) for i, p in enumerate(points) if p.e0 is not None]))
    every = -(-(len(points) - 1) // _LABELS) or 1
    last = len(points) - 1
    for i, p in enumerate(points):
        kind = "error" if p.passed else "error bad"
        parts.append(
            f'<circle class="{kind}" cx="{x(i):.1f}" cy="{y(p.value):.1f}" r="{3.5 if p.passed else 5}">'
            f"<title>{escape(p.told)}</title></circle>"
        )
        if i == last or (i % every == 0 and x(last) - x(i) > 34):
            anchor = "end" if i == last and len(points) > 1 else "middle"
            at = x(i) + (8 if anchor == "end" else 0)
            parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{p.label}</text>')
    return "".join(parts)


def sheet(panels: Sequence[str], alone: bool = False) -> str:
    """Panels in two columns, row by row, empty ones left out. ``alone``: to be a file, with colours and a margin."""
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * WIDTH + GAP, rows * (HEIGHT + GAP)
    placed = "".join(
        f'<g class="panel" transform="translate({i % COLUMNS * (WIDTH + GAP)} {i // COLUMNS * (HEIGHT + GAP)})">{p}</g>'
        for i, p in enumerate(panels)
        if p
    )
    margin = 16 if alone else 0
    own = ""
    if alone:
        back = f'<rect x="{-margin}" y="{-margin}" width="100%" height="100%" fill="var(--back)"/>'
        own = f"<style>svg{{{LIGHT}}}{STYLE}</style>{back}"
    width, height = width + 2 * margin, height + 2 * margin
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{-margin} {-margin} {width} {height}" '
        f'font-family="system-ui,sans-serif">{own}{placed}</svg>'
    )


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")) if power else "1"


def _line(name: str, points: Sequence[tuple[float, float]]) -> str:
    if not points:
        return ""
    return f'<polyline class="{name}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _grid(decades: Scale, y: Callable[[float], float]) -> list[str]:
    low, high = decades
    every = -(-(high - low) // 8)
    out = []
    for power in range(low, high + 1, every):
        at = y(10.0**power)
        out.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_power(power)}</text>')
    return out
