"""Pieces of HTML that several parts of the page are made of. What they are given as HTML is escaped already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dsv2_compile.autotune.report.axes import Axis
from dsv2_compile.autotune.report.data import Case
from dsv2_compile.autotune.report.numbers import count

_SPARK = 150
CARDS = ("summary", "winners")


@dataclass(frozen=True)
class Cell:
    """``order``: what a column of numbers is sorted by."""

    html: str
    order: float | None = None
    kind: str = ""


def cell(html: str, order: float | None = None, kind: str = "") -> Cell:
    return Cell(html, order, kind)


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str) -> str:
    """On a narrow screen every row of a table of ``CARDS`` is a card whose cells say what they are."""
    names = head if kind in CARDS else [""] * len(head)
    body = "".join(
        f"<tr>{''.join(_td(c, name, i == 0) for i, (c, name) in enumerate(zip(row, names, strict=True)))}</tr>"
        for row in rows
    )
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _td(c: Cell, name: str, first: bool) -> str:
    kinds = " ".join(filter(None, ["n" if c.order is not None else "", c.kind]))
    kind = f' class="{kinds}"' if kinds else ""
    order = "" if c.order is None else f' data-v="{c.order:.6g}"'
    tag = 'th scope="row"' if first else "td"
    named = f' data-h="{escape(name)}"' if name else ""
    return f"<{tag}{named}{kind}{order}>{c.html}</{tag.split()[0]}>"


def dl(pairs: Iterable[tuple[str, str]], kind: str) -> str:
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs)
    return f'<dl class="{kind}">{items}</dl>'


def reasons(found: Iterable[tuple[str, str, int]]) -> str:
    items = "".join(f"<li><b>{count(n)} {escape(status)}</b>: {escape(reason)}</li>" for status, reason, n in found)
    return f'<ul class="reasons">{items}</ul>' if items else ""


def code(config: Mapping[str, int]) -> str:
    return f'<code class="config">{escape(json.dumps(config))}</code>'


def breakable(name: str) -> str:
    """A line may end behind a dot or an underscore."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def where(case: Case) -> str:
    """Sizes are broken between two of them alone."""
    return escape(case.where).replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")


def spark_scale(cases: Iterable[Case]) -> Axis:
    """Times as multiples of the bound, for all of ``cases``."""
    found = [t / w.bound for c in cases if (w := c.winner) for t in (w.microseconds, w.default) if t]
    return Axis(min([1.0, *found]), max([1.5, *found]), 9, _SPARK - 9)


def spark(c: Case, scale: Axis) -> str:
    """The default and the winner on one line that begins at the bound."""
    w = c.winner
    if not w:
        return ""
    best, default = scale.at(w.microseconds / w.bound), scale.at((w.default or w.microseconds) / w.bound)
    low, high = sorted((best, default))
    diamond = f'<path class="is-default" d="M{default:.1f} 4l5 5-5 5-5-5z"/>' if w.default else ""
    return (
        f'<svg class="spark" viewBox="0 0 {_SPARK} 18" width="{_SPARK}" height="18" aria-hidden="true">'
        f'<path class="line bound" d="M{scale.at(1.0):.1f} 1v16"/><path class="span" d="M{low:.1f} 9H{high:.1f}"/>'
        f'{diamond}<circle class="is-winner" cx="{best:.1f}" cy="9" r="5"/></svg>'
    )
