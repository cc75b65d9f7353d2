"""The page of a report: one file without anything from outside, which needs its script only for comfort."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from html import escape
from pathlib import Path

from dsv2_compile.autotune.report.data import Case, Part, Report
from dsv2_compile.autotune.report.details import details
from dsv2_compile.autotune.report.numbers import count, counted, lasting, share, time, times
from dsv2_compile.autotune.report.tables import breakable, cell, code, dl, reasons, spark, spark_scale, table, where

_STYLE, _SCRIPT = (Path(__file__).with_name(name).read_text("utf-8") for name in ("page.css", "page.js"))
PREDICTED_ONLY = "Predicted, not measured: nothing here has run on a GPU."
MEASURED_ALL = "Every winner was measured."

_READING = (
    ("bound", "the least time the target's roofline allows: bytes over bandwidth or FLOP over the peak rate"),
    ("of the bound", "bound over time: 100 % is as fast as the target allows"),
    ("default", "the configuration the kernel takes without a tuning record"),
    ("winner", "the tuning record a build uses, or the fastest trial where no record is as well founded"),
    ("measured, predicted", "timed on the device that is named, or compiled for it and timed by a model"),
    ("refused", "it does not compile, cannot be launched or spills"),
    ("failed", "the compiler or the measuring process crashed, hung or faulted with it"),
    ("wrong", "it does not compute what the reference computes"),
    ("impossible", "its time is below what the target can do"),
    ("share of the variance", "how much of the spread of log time a knob explains by itself (correlation ratio)"),
    ("regret", "how much slower than the best measured the configuration is that the model likes best"),
)


def page(report: Report) -> str:
    """Self-contained HTML. Scripts other than its own, and all requests, are forbidden by its policy."""
    names = ", ".join(p.target for p in report.parts)
    numbered = {id(c): i for i, c in enumerate(report.cases)}
    parts = "".join(_part(p, numbered) for p in report.parts)
    cases = "".join(details(c, numbered[id(c)]) for c in report.cases)
    digest = b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Tuning sweep: {escape(names)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>Tuning sweep: {escape(names)}</h1>{_verdict(report)}{_notes(report)}</header><main>{parts}"
        f'<section id="tasks"><h2>Tasks</h2><nav id="choose" hidden></nav>{cases}</section>'
        f'<section><h2>How to read this</h2>{dl(_READING, "reading")}</section></main><p id="errors" role="alert"></p>'
        f'<script type="application/json" id="data">{_embedded(report)}</script><script>{_SCRIPT}</script>'
        "</body></html>\n"
    )


def verdict(report: Report) -> str:
    """One line: what the times rest on."""
    measured, known = report.measured, sum(c.winner is not None for c in report.cases)
    if not known:
        return "No configuration can be used."
    if not measured:
        return PREDICTED_ONLY
    if measured == known:
        return MEASURED_ALL
    return f"{known - measured} of {known} winners are predicted, not measured."


def notes(report: Report) -> list[str]:
    """What is not in the report, and why."""
    said = [f"{counted(n, 'line')} left out: {reason}." for reason, n in report.refused]
    if report.damaged:
        said.insert(0, f"{counted(report.damaged, 'damaged line')} left out.")
    if report.superseded:
        said.append(f"{counted(report.superseded, 'trial')} of older sources, compilers or models left out.")
    if report.left_out:
        said.append(f"{counted(report.left_out, 'task')} with the fewest trials left out.")
    thin = sum(len(s.points) < s.configs for c in report.cases for s in c.series)
    if thin:
        said.append(
            f"Of {count(thin)} searches the plots show some of the configurations; all figures count every one."
        )
    return said


def _verdict(report: Report) -> str:
    kind = "good" if verdict(report) == MEASURED_ALL else "warn"
    return f'<p class="verdict {kind}">{escape(verdict(report))}</p>'


def _notes(report: Report) -> str:
    items = "".join(f"<li>{escape(n)}</li>" for n in notes(report))
    files = "".join(f"<li><code>{escape(f)}</code></li>" for f in report.files)
    return (f'<ul class="notes">{items}</ul>' if items else "") + (
        f'<details class="soft"><summary>{counted(len(report.files), "file")} read</summary><ul>{files}</ul></details>'
    )


def _part(part: Part, numbered: dict[int, int]) -> str:
    t = part.totals
    of = "measured" if t.measured == t.cases else "predicted" if not t.measured else "some predicted"
    tiles = [
        ("tasks", f"{count(t.cases)}, {count(t.measured)} measured"),
        ("configurations", f"{count(t.configs)} in {count(t.trials)} trials"),
        ("usable", share(t.counts["ok"] / t.configs) if t.configs else "none tried"),
        (f"gain over default, mean, {of}", times(t.gain) if t.gain else "unknown"),
        (f"of the bound, mean, {of}", share(t.of_bound) if t.of_bound else "unknown"),
        ("time in trials", lasting(t.seconds)),
    ]
    if t.spearman is not None:
        tiles.append(("Spearman ρ, median", f"{t.spearman:.2f}"))
    why = reasons(t.reasons) or '<p class="soft">Every configuration could be used.</p>'
    return (
        f'<section class="target"><h2>{escape(part.target)}</h2>{dl(tiles, "tiles")}'
        f"<h3>Tasks: default against best, best against the bound</h3>{_summary(part, numbered)}"
        f"<details><summary>Why configurations could not be used</summary>{why}</details>"
        f"<h3>Winners</h3>{_winners(part, numbered)}</section>"
    )


def _summary(part: Part, numbered: dict[int, int]) -> str:
    scale = spark_scale(part.cases)
    head = (
        "kernel", "sizes", "trials", "not usable", "default", "best", "gain", "bound", "of the bound",
        f"1× to {times(scale.high)} the bound", "rests on",
    )  # fmt: skip
    rows = []
    for c in part.cases:
        w, m = c.winner, c.main
        lost = m.configs - m.counts["ok"] if m else 0
        slow = "bad" if w and w.gain and w.gain < 1 else ""
        broken = "bad" if w and w.of_bound > 1 else ""
        rows.append(
            [
                cell(_link(c, numbered)),
                cell(where(c)),
                cell(count(m.trials if m else 0), m.trials if m else 0),
                cell(_lost(c, lost), lost),
                cell(_default(c), w.default if w and w.default else 0),
                cell(time(w.microseconds) if w else "none", w.microseconds if w else 0),
                cell(times(w.gain) if w and w.gain else "", w.gain if w and w.gain else 0, slow),
                cell(time(c.bound), c.bound),
                cell(share(w.of_bound) if w else "", w.of_bound if w else 0, broken),
                cell(spark(c, scale)),
                cell(_rests(c, w.provenance if w else "")),
            ]
        )
    return table(head, rows, "summary")


def _winners(part: Part, numbered: dict[int, int]) -> str:
    head = ("kernel", "sizes", "configuration", "time", "chosen by", "checks")
    rows = [
        [
            cell(_link(c, numbered)),
            cell(where(c)),
            cell(code(dict(c.winner.config))),
            cell(time(c.winner.microseconds), c.winner.microseconds),
            cell(_rests(c, c.winner.judge)),
            cell(escape(", ".join(c.winner.checks)) or "none recorded"),
        ]
        for c in part.cases
        if c.winner
    ]
    return table(head, rows, "winners") if rows else "<p>None.</p>"


def _link(c: Case, numbered: dict[int, int]) -> str:
    """And what one launch of it is for."""
    name = f'<a href="#t{numbered[id(c)]}">{escape(c.key.kernel)}</a>'
    return f'<div>{name}<div class="what">{breakable(c.what)}</div></div>'


def _lost(c: Case, lost: int) -> str:
    if not c.main or not lost:
        return "0"
    by = ", ".join(f"{n} {s}" for s, n in c.main.counts.items() if n and s != "ok")
    return f"<details><summary>{escape(by)}</summary>{reasons(c.main.reasons)}</details>"


def _default(c: Case) -> str:
    if c.winner and c.winner.default:
        return time(c.winner.default)
    return escape(c.main.default.status) if c.main and c.main.default else "not tried"


def _rests(c: Case, on: str) -> str:
    w = c.winner
    if not w:
        return "nothing"
    kind = "good" if w.provenance == "measured" else "warn"
    return f'<span class="{kind}">{escape(on)}</span> ({w.source})'


def _embedded(report: Report) -> str:
    """JSON that cannot end its script element."""
    text = json.dumps(report.to_json(points=True), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
