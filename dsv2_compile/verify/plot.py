"""The report as a page: error by layer against what eager mode loses and what the rule allows. One file, no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from dsv2_compile.errors import UsageError
from dsv2_compile.verify.report import Report, Section

ENDINGS = (".html", ".svg")
WIDTH, HEIGHT = 760, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 34, 34
_GAP = 16
_INK = {"error": "#1f5fa8", "e0": "#8a8f98", "limit": "#c8453b"}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:800px;margin:2.5rem auto;padding:0 1rem;color:#1b1f24}"
    "h1{font-size:1.4rem;margin:0}pre{background:#f5f6f8;padding:.8rem;overflow:auto;font-size:12px;line-height:1.4}"
    ".verdict{font-weight:600}.passed{color:#1a7f45}.failed{color:#c8453b}svg{max-width:100%;height:auto}"
)


def write_report(report: Report, path: Path) -> None:
    """``path`` ends in .html (the figures and the table) or .svg (the figures). UsageError for another ending."""
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"A report cannot be written as {path.suffix or 'a file without ending'}.", "Use .html or .svg."
        )
    text = figure(report) if path.suffix == ".svg" else page(report)
    path.write_text(text, encoding="utf-8")


def page(report: Report) -> str:
    """Self-contained HTML."""
    kind = "passed" if report.passed else "failed"
    verdict = (
        "Computes what the eager model computes." if report.passed else "Does not compute what the model computes."
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(report.engine)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(report.engine)}</h1>"
        f'<p class="verdict {kind}">{verdict}</p>'
        f"<p>{escape(report.dtype)} engine against the {escape(report.oracle_dtype)} eager model. Relative L2 error at "
        "the 95th percentile of the rows; grey is eager mode in the engine's dtype, red what the rule allows.</p>"
        f"{figure(report)}<pre>{escape(report.text())}</pre></html>\n"
    )


def figure(report: Report) -> str:
    """One SVG, a panel for every path and phase; layers from left to right, the logits last."""
    groups: dict[tuple[str, str], list[Section]] = {}
    for s in report.sections:
        groups.setdefault((s.path, s.phase), []).append(s)
    scale = _scale(report.sections)
    panels = [_panel(i, *key, rows, scale) for i, (key, rows) in enumerate(groups.items())]
    height = len(panels) * (HEIGHT + _GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui,sans-serif" font-size="11">{"".join(panels)}</svg>'
    )


Scale = tuple[int, int]
"""Powers of ten at the lower and the upper end of the axis."""


def _scale(sections: Iterable[Section]) -> Scale:
    values = [v for s in sections for v in _values(s).values() if math.isfinite(v) and v > 0] or [1e-7, 1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _values(s: Section) -> dict[str, float]:
    v = s.verdict
    return {"error": v.error.rel_l2_p95, "e0": v.e0.rel_l2_p95, "limit": v.limits["rel_l2_p95"]}


def _panel(index: int, path: str, phase: str, sections: Sequence[Section], scale: Scale) -> str:
    ordered = sorted(sections, key=lambda s: math.inf if s.layer is None else s.layer)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(ordered) - 1, 1)
    low, high = scale

    def x(i: int) -> float:
        return _LEFT + i * step if len(ordered) > 1 else (_LEFT + WIDTH - _RIGHT) / 2

    def y(value: float) -> float:
        """Zero lies at the lower edge; what is not finite, at the upper."""
        power = high if not math.isfinite(value) else math.log10(value) if value > 0 else low
        share = (min(max(power, low), high) - low) / (high - low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{_LEFT}" y="20" font-size="13" font-weight="600">{escape(path)}, {escape(phase)}</text>']
    parts += _grid(scale, y)
    for name in ("limit", "e0"):
        points = " ".join(f"{x(i):.1f},{y(_values(s)[name]):.1f}" for i, s in enumerate(ordered))
        dash = ' stroke-dasharray="5 3"' if name == "limit" else ""
        parts.append(f'<polyline class="{name}" points="{points}" fill="none" stroke="{_INK[name]}"{dash}/>')
    every = -(-len(ordered) // 16)
    for i, s in enumerate(ordered):
        parts.append(_point(x(i), y, s))
        if s.layer is None or i % every == 0:
            label = "logits" if s.layer is None else str(s.layer)
            parts.append(f'<text x="{x(i):.1f}" y="{HEIGHT - 14}" text-anchor="middle" fill="#555">{label}</text>')
    return f'<g transform="translate(0 {index * (HEIGHT + _GAP)})">{"".join(parts)}</g>'


def _grid(scale: Scale, y: Callable[[float], float]) -> list[str]:
    out = []
    for power in range(scale[0], scale[1] + 1):
        at = y(10.0**power)
        out.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e4e6ea"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#555">1e{power}</text>')
    return out


def _point(x: float, y: Callable[[float], float], s: Section) -> str:
    values = _values(s)
    ink = _INK["error"] if s.verdict.passed else _INK["limit"]
    told = f"{s.probe}: {values['error']:.2e}, eager {values['e0']:.2e}, limit {values['limit']:.2e}"
    if not s.verdict.passed:
        told += f"; over the limit: {', '.join(s.verdict.failed)}"
    return (
        f'<circle class="error" cx="{x:.1f}" cy="{y(values["error"]):.1f}" r="4" fill="{ink}">'
        f"<title>{escape(told)}</title></circle>"
    )
