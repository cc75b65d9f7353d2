"""A report as a page: the verdict, error by layer against eager mode and the limit, and every count. One file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dsv2_compile.errors import UsageError
from dsv2_compile.verify import chart
from dsv2_compile.verify.chart import DARK, LIGHT
from dsv2_compile.verify.drive import PHASES
from dsv2_compile.verify.report import REPEATED, RULE, Report, Section

ENDINGS = (".html", ".svg")
_STYLE = (
    f":root{{color-scheme:light dark;{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}"
    "body{font:15px/1.55 system-ui,sans-serif;max-width:920px;margin:2.5rem auto;padding:0 1rem;color:var(--ink);"
    "background:var(--back)}h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.05rem;margin:2.2rem 0 .6rem}"
    "p{margin:.4rem 0;max-width:46rem}.soft{color:var(--soft)}.verdict{font-weight:600;font-size:1.05rem}"
    ".passed{color:var(--green)}.failed{color:var(--red)}li{margin:.3rem 0}"
    ".problems li:first-child{color:var(--red);font-weight:600}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}"
    "th,td{padding:.28rem .9rem .28rem 0;text-align:right;border-bottom:1px solid var(--line)}"
    "th{font-weight:600;color:var(--soft)}th:first-child,td:first-child{text-align:left}"
    ".scroll{overflow-x:auto;white-space:nowrap}svg{max-width:100%;height:auto}summary{cursor:pointer}"
    ".key{display:inline-block;vertical-align:middle;margin:0 .35rem 0 1rem}.key:first-child{margin-left:0}"
    + chart.STYLE
)
_KEYS = (
    ("engine", '<circle class="error" cx="12" cy="6" r="4"/>'),
    ("engine, over a limit", '<circle class="error bad" cx="12" cy="6" r="5"/>'),
    ("eager mode in the engine's dtype (e0)", '<polyline class="e0" points="0,6 24,6"/>'),
    ("limit", '<polyline class="limit" points="0,6 24,6"/>'),
)


def write_report(report: Report, path: Path) -> None:
    """``path`` ends in .html (everything) or .svg (the charts). UsageError for another ending."""
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"A report cannot be written as {path.suffix or 'a file without ending'}.", "Use .html or .svg."
        )
    text = charts(report, alone=True) if path.suffix == ".svg" else page(report)
    path.write_text(text, encoding="utf-8")


def page(report: Report) -> str:
    """Self-contained HTML."""
    kind = "passed" if report.passed else "failed"
    verdict = (
        "Computes what the eager model computes."
        if report.passed
        else "Does not compute what the eager model computes."
    )
    problems = "".join(f"<li>{escape(p)}</li>" for p in report.problems)  # the first is where to begin
    keys = "".join(
        f'<svg class="key" width="24" height="12">{mark}</svg><span>{escape(name)}</span>' for name, mark in _KEYS
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(report.engine)}: numeric check</title><style>{_STYLE}</style>"
        f'<h1>{escape(report.engine)}</h1><p class="verdict {kind}">{verdict}</p>'
        f'<p class="soft">{escape(report.dtype)} engine against the eager model in {escape(report.oracle_dtype)}. '
        f"{escape(RULE[0].upper() + RULE[1:])}.</p>"
        + (f'<ul class="problems">{problems}</ul>' if problems else "")
        + '<h2>Error by layer</h2><p class="soft">Relative L2 error of the cache rows of each layer and of the logits, '
        "95th percentile; above it the errors of all paths on average, as parts of their limit. A layer's rows depend "
        "on all layers before it: the first that is off names the place.</p>" + f"<p>{keys}</p>{charts(report)}"
        f"<h2>Most likely token</h2>{_tokens(report)}<h2>One path against another</h2>{_paths(report)}"
        f"<h2>Also</h2>{_rest(report)}"
        f"<h2>Every figure</h2><details><summary>{len(report.sections)} rows</summary>"
        f'<div class="scroll">{_figures(report)}</div></details></html>\n'
    )


def charts(report: Report, alone: bool = False) -> str:
    """One SVG, a column for each program: the errors on average, then a row for every path."""
    levels = {phase: chart.level_points(x for x in report.levels if x.phase == phase) for phase in PHASES}
    groups: dict[str, dict[str, list[Section]]] = {}
    for s in report.sections:
        groups.setdefault(s.path, {}).setdefault(s.phase, []).append(s)
    points = {path: {k: chart.section_points(v) for k, v in group.items()} for path, group in groups.items()}
    average = chart.scale(p for group in levels.values() for p in group)
    decades = chart.scale(p for group in points.values() for part in group.values() for p in part)
    panels = [chart.panel(f"{phase}, every path on average, in limits", levels[phase], average) for phase in PHASES]
    for path, group in points.items():
        panels += [chart.panel(f"{phase}, {path}", group[phase], decades) if phase in group else "" for phase in PHASES]
    return chart.sheet(panels, alone)


def _tokens(report: Report) -> str:
    head = ("path", "margin beyond rounding", "agree", "margin within rounding", "agree", "behind a router flip")
    rows = [
        (a.path, a.top1.stable, a.top1.stable_agree, a.top1.unstable, a.top1.unstable_agree, a.apart)
        for a in report.top1
    ]
    return _table(head, rows)


def _paths(report: Report) -> str:
    head = ("path against batch", "rows", "logits", "largest difference", "")
    rows = [
        (c.path, c.rows, c.logits, f"{c.difference:.1e}", "same bits" if c.bitwise else "") for c in report.consistency
    ]
    return _table(head, rows)


def _rest(report: Report) -> str:
    r = report.routing
    rows: list[tuple[object, ...]] = [
        ("router choices", r["choices"]),
        ("that rounding can turn", r["unstable"]),
        ("that eager mode turned", r["flips"]),
        ("the same input twice", REPEATED[report.repeatable]),
        ("NaN in padding, which nothing reads", report.padding_nan),
        ("farthest eager run from the others", f"{report.spread.rel_l2_p95:.2f} x"),
    ]
    if report.oracle_difference is not None:
        limit = f"{report.oracle_difference:.1e} (limit {report.oracle_limit:.1e})"
        rows.append(("golden data against the checkpoint", limit))
    return _table(("", ""), rows)


def _figures(report: Report) -> str:
    head = (
        "path",
        "program",
        "probe",
        "rows",
        "rel. L2 p95",
        "e0",
        "limit",
        "cosine p5",
        "largest",
        "limit",
        "scale",
        "",
    )
    rows = []
    for s in report.sections:
        v, e = s.verdict, s.verdict.error
        told = ", ".join(v.failed) if v.failed else "flips" if s.flips else ""
        figures = (f"{x:.2e}" for x in (e.rel_l2_p95, v.e0.rel_l2_p95, v.limits["rel_l2_p95"]))
        rest = (f"{e.cosine_p5:.12f}", f"{e.max_abs:.2e}", f"{v.limits['max_abs']:.2e}", f"{e.scale:.7f}", told)
        rows.append((s.path, s.phase, s.probe, e.rows, *figures, *rest))
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head) if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(x))}</td>' for x in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"
