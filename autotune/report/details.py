"""One task on the page: its figures, plots and fastest configurations."""

from __future__ import annotations

from html import escape

from dsv2_compile.autotune.report.charts import plots, scatter
from dsv2_compile.autotune.report.data import Agreement, Case, Point, Series
from dsv2_compile.autotune.report.numbers import count, counted, lasting, share, time, times
from dsv2_compile.autotune.report.tables import cell, code, dl, reasons, table, where
from dsv2_compile.autotune.trial import OK

_FASTEST = 10
_KEYS = (
    ("usable", '<path class="dots ok" d="M12 7h0"/>'),
    ("default", '<path class="is-default" d="M12 1l6 6-6 6-6-6z"/>'),
    ("winner", '<circle class="is-winner" cx="12" cy="7" r="5"/>'),
    ("bound", '<path class="line bound" d="M0 7h24"/>'),
    ("best so far", '<path class="line best" d="M0 7h24"/>'),
    ("best with a value", '<path class="least" d="M12 3l-5 8h10z"/>'),
)


def details(case: Case, number: int) -> str:
    """Closed at first; open, and alone, when the script shows it."""
    return (
        f'<details class="task" id="t{number}"><summary>{_title(case)}</summary>{_facts(case)}'
        + "".join(_series(case, s, i) for i, s in enumerate(case.series))
        + (_agreement(case.agreement) if case.agreement else "")
        + ("" if case.series else '<p class="soft">The logs hold no trials of it: a record is all there is.</p>')
        + "</details>"
    )


def _title(case: Case) -> str:
    w = case.winner
    found = f"{time(w.microseconds)}, {share(w.of_bound)} of the bound" if w else "nothing usable"
    what = f" · {escape(case.what)}" if case.what else ""
    at = f"{escape(case.key.target)} · {where(case)}"
    return f'<b>{escape(case.key.kernel)}</b>{what} · {at} <span class="soft">· {found}</span>'


def _facts(case: Case) -> str:
    k, w = case.key, case.winner
    rows = [("bound", time(case.bound))]
    if w:
        rows.append(("best", f"{time(w.microseconds)}, {w.judge} ({w.source})"))
        rows.append(("default", _default(case)))
    rows += [
        ("dims", ", ".join(f"{n} {v}" for n, v in k.dims) or "none"),
        ("dtype", k.dtype),
        ("built by", f"Triton {k.triton}, ptxas {k.ptxas}, source {k.source[:12]}"),
    ]
    won = f'<p class="won">Winner {code(dict(w.config))}</p>' if w else ""
    return dl(rows, "facts") + won


def _default(case: Case) -> str:
    w, m = case.winner, case.main
    if w and w.default:
        gain = w.gain or 1.0
        told = "as fast as the best" if gain == 1 else f"the best is {times(gain)} as fast"
        return f"{time(w.default)}: {told}"
    return f"{m.default.status}: {m.default.reason}" if m and m.default else "not tried"


def _series(case: Case, series: Series, number: int) -> str:
    name = series.judge[0].upper() + series.judge[1:]
    heading = name if series.measured else f"Predicted, not measured: {series.judge.removeprefix('predicted, ')}"
    lost = series.configs - series.counts[OK]
    told = [
        f"{counted(series.trials, 'trial')} of {counted(series.configs, 'configuration')} in {lasting(series.seconds)}"
    ]
    if series.best:
        found = series.curve[-1][0]
        told.append(f"the best came at trial {count(found)}")
        told.append(f"{count(series.near)} of the configurations, itself among them, are within 5 % of it")
    if len(series.points) < series.configs:
        told.append(f"drawn are {count(len(series.points))}, the fastest and every n-th of the others")
    why = f"<details><summary>{count(lost)} not usable</summary>{reasons(series.reasons)}</details>" if lost else ""
    keys = "".join(f'<span><svg width="24" height="14" aria-hidden="true">{m}</svg>{n}</span>' for n, m in _KEYS)
    return (
        f'<section class="series {series.provenance}" data-series="{number}"><h3>{escape(heading)}</h3>'
        f"<p>{'; '.join(told)}.</p>{why}"
        f'<p class="keys">{keys}</p><div class="plots">{"".join(plots(case, series))}</div>{_fastest(case, series)}'
        "</section>"
    )


def _fastest(case: Case, series: Series) -> str:
    """The fastest configurations and the default, with what is known of each."""
    rows = [p for p in series.points if p.status == OK and (p.rank <= _FASTEST or p.default)]
    if not rows:
        return ""
    knobs = list(dict.fromkeys(k for p in rows for k, _ in p.config))
    facts = list(dict.fromkeys(k for p in rows for k, _ in p.facts))
    head = ("rank", "time", "of the bound", "trial", *knobs, *(f"{f}" for f in facts))
    body = []
    for p in rows:
        config, known, took = dict(p.config), dict(p.facts), p.microseconds or case.bound
        body.append(
            [
                cell(f"{count(p.rank)}{_mark(p, case)}", p.rank),
                cell(time(took), took),
                cell(share(case.bound / took), case.bound / took),
                cell(count(p.trial), p.trial),
                *(cell(str(config.get(k, "")), config.get(k, 0)) for k in knobs),
                *(cell(escape(known.get(f, ""))) for f in facts),
            ]
        )
    name = "The fastest, and the default" if series.measured else "The fastest, and the default: predicted"
    return f"<details open><summary>{name}</summary>{table(head, body, 'fastest')}</details>"


def _mark(p: Point, case: Case) -> str:
    marks = [" default"] if p.default else []
    marks += [" winner"] if case.winner and p.config == case.winner.config else []
    return f'<span class="soft">{",".join(marks)}</span>' if marks else ""


def _agreement(a: Agreement) -> str:
    return (
        '<section class="series"><h3>Does the prediction rank as the measurement does?</h3>'
        f"<p>Of {counted(a.configs, 'configuration')}: {escape(a.predicted_by)}, and {escape(a.measured_by)}. Measured "
        f"times are {times(a.scale)} the predicted ones (median). Taking the configuration predicted best would cost "
        f"{share(a.regret)} over the best measured; measuring the five predicted best, {share(a.regret_of_5)}.</p>"
        f'<div class="plots">{scatter(a)}</div></section>'
    )
