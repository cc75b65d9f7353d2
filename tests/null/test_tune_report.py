"""The report of a sweep: its figures against figures worked out here, its page in a browser, and hostile logs."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import random
import re
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv2_compile.autotune import lines
from dsv2_compile.autotune.base import Base
from dsv2_compile.autotune.record import Record, launch_digest
from dsv2_compile.autotune.report import stats
from dsv2_compile.autotune.report.axes import Axis, log_axis
from dsv2_compile.autotune.report.build import MOST_CASES, alike, report
from dsv2_compile.autotune.report.data import Case, Point, Report
from dsv2_compile.autotune.report.page import PREDICTED_ONLY, page, verdict
from dsv2_compile.autotune.report.read import read
from dsv2_compile.autotune.schema import key_of_json
from dsv2_compile.cli.main import main
from tests import tune_logs
from tests.browser import Dom, after, decode, dom, framed, needs_browser, picture
from tests.cli_tools import checked, cli
from tests.tune_logs import MEASURED, PREDICTED, Trial, trials, write

HOSTILE = '</script><script>document.documentElement.dataset.owned=1</script><img src=x onerror="owned=1">'
SEED = 7


def made(path: Path, values: list[Trial], base: Base | None = None) -> Report:
    return report(read([write(path, values)]), base or Base(), [str(path)])


def one(path: Path, values: list[Trial], base: Base | None = None) -> Case:
    (case,) = made(path, values, base).cases
    return case


def record_of(trial: Trial, **changes: object) -> Record:
    key = key_of_json(trial["key"])
    config = tuple(sorted(trial["config"].items()))
    known = {"provenance": "predicted", "microseconds": 9.0, "default_microseconds": 12.0, "bound": 4.0, "model": 1}
    rest = {"launch": launch_digest(key, dict(config)), "device": "", "checks": ("compiled",), "trials": 3}
    return Record(key=key, config=config, created=5, **{**known, **rest, **changes})  # type: ignore[arg-type]


def based(*records: Record) -> Base:
    base = Base()
    for r in records:
        base.records[r.key] = r
    return base


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A log of many tasks, some of them measured, and the report of it."""
    path = write(tmp_path_factory.mktemp("sweep") / "h800.jsonl", list(tune_logs.sweep(SEED)))
    return path, report(read([path]), Base(), [str(path)])


@pytest.fixture(scope="module")
def drawn(sweep, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(sweep[1]), encoding="utf-8")
    return path


# Figures


def test_rank_correlation_is_that_of_the_ranks_with_ties_shared():
    assert stats.ranks([30, 10, 20, 20]) == [4, 1, 2.5, 2.5]
    rng = random.Random(SEED)
    a = [rng.choice([1.0, 2.0, 3.0, 5.0, 8.0]) for _ in range(200)]
    b = [x + rng.gauss(0, 3) for x in a]
    order = np.argsort(np.argsort(b))
    shared = np.array([np.mean([1 + sum(y < x for y in a), sum(y <= x for y in a)]) for x in a])
    found = stats.spearman(a, b)
    assert found == pytest.approx(float(np.corrcoef(shared, order)[0, 1]), abs=1e-12)
    assert stats.spearman(a, [math.exp(x) for x in b]) == pytest.approx(found)
    assert stats.spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    assert stats.spearman([1, 2], [1, 2]) is None
    assert stats.spearman([1, 1, 1], [1, 2, 3]) is None


def test_variance_that_a_knob_explains():
    assert stats.explained([[2.0, 2.0], [5.0, 5.0]]) == pytest.approx(1)
    assert stats.explained([[2.0, 8.0], [8.0, 2.0]]) == pytest.approx(0)
    groups = [[1.0, 2.0], [4.0, 8.0, 16.0]]
    logs = [np.log(g) for g in groups]
    everything = np.concatenate(logs)
    within = sum(((g - g.mean()) ** 2).sum() for g in logs)
    total = ((everything - everything.mean()) ** 2).sum()
    assert stats.explained(groups) == pytest.approx(1 - within / total)
    assert stats.explained([[3.0], []]) == 0


@pytest.mark.parametrize("count", [10, 1000, 99_999])
def test_thinning_keeps_what_matters_and_the_order(count):
    found = stats.thinned(range(count), 300, lambda v: v < 50 or v == count - 1)
    assert len(found) <= 301
    assert found == sorted(found)
    assert {*range(min(50, count)), count - 1} <= set(found)
    gaps = [b - a for a, b in itertools.pairwise(found[50:-1])]
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


def test_counts_best_and_default_are_those_of_the_log(tmp_path):
    values = list(trials("linear", 160, SEED))
    case = one(tmp_path / "log", values)
    (series,) = case.series
    for status, n in series.counts.items():
        assert n == sum(v["status"] == status for v in values)
    ok = [v for v in values if v["status"] == "ok"]
    best = min(ok, key=lambda v: v["microseconds"])
    assert case.winner
    assert dict(case.winner.config) == best["config"]
    assert (case.winner.microseconds, case.winner.default) == (best["microseconds"], values[0]["microseconds"])
    assert case.winner.gain == values[0]["microseconds"] / best["microseconds"]
    assert case.winner.of_bound == best["bound"] / best["microseconds"]
    assert series.near == sum(v["microseconds"] <= 1.05 * best["microseconds"] for v in ok)
    assert series.curve[-1] == (values.index(best) + 1, best["microseconds"])
    times = [v["microseconds"] for v in values[: series.curve[-1][0]] if v["status"] == "ok"]
    assert [t for _, t in series.curve] == list(dict.fromkeys(itertools.accumulate(times, min)))
    assert sum(n for _, _, n in series.reasons) == len(values) - len(ok)
    assert {r for _, r, _ in series.reasons} == {alike(v["reason"]) for v in values if v["status"] != "ok"}
    assert [p.microseconds for p in series.points if p.microseconds] == sorted(v["microseconds"] for v in ok)


def test_knobs_are_ranked_by_what_they_explain_and_their_groups_hold_every_configuration(tmp_path):
    values = list(trials("linear", 160, SEED))
    (series,) = one(tmp_path / "log", values).series
    found = series.effects
    assert {e.knob for e in found} == set(values[0]["config"])
    assert [e.explained for e in found] == sorted((e.explained for e in found), reverse=True)
    for effect in found:
        assert sum(g.ok + g.unusable for g in effect.groups) == len(values)
        for group in effect.groups:
            times = [v["microseconds"] for v in values if v["config"][effect.knob] == group.low and v["status"] == "ok"]
            assert group.low == group.high
            assert group.best == min(times)
            assert group.quartiles == pytest.approx(np.percentile(times, [25, 50, 75]))


def test_a_knob_with_many_values_is_shown_in_ranges(tmp_path):
    values = list(trials("rms_norm", 1, SEED)) * 100
    spread = [{**v, "config": {"num_warps": i, "num_stages": 1}} for i, v in enumerate(values)]
    (effect,) = one(tmp_path / "log", spread).series[0].effects
    assert [(g.low, g.high) for g in effect.groups] == [(i, i + 9) for i in range(0, 100, 10)]
    assert all(g.ok == 10 for g in effect.groups)


def test_the_last_trial_of_a_configuration_counts(tmp_path):
    first, second, *rest = trials("linear", 20, SEED)
    again = [{**second, "status": "ok", "microseconds": 1e-3 * first["bound"] + 5, "created": second["created"] + 100}]
    failed = [
        {**again[0], "status": "failed", "microseconds": 0.0, "reason": "hung", "created": second["created"] + 200}
    ]
    (series,) = one(tmp_path / "a", [first, second, *rest, *again]).series
    assert (series.trials, series.configs) == (21, 20)
    assert series.best
    assert dict(series.best.config) == second["config"]
    (series,) = one(tmp_path / "b", [first, second, *rest, *again, *failed]).series
    assert series.best
    assert dict(series.best.config) != second["config"]


def test_a_default_that_cannot_be_used_is_told(tmp_path):
    first, *rest = trials("linear", 20, SEED)
    refused = {**first, "status": "refused", "microseconds": 0.0, "reason": "spills 8 bytes a thread"}
    found = made(tmp_path / "log", [refused, *rest])
    (case,) = found.cases
    assert case.winner
    assert (case.winner.default, case.winner.gain) == (None, None)
    assert "refused: spills 8 bytes a thread" in Dom(page(found)).texts


def test_agreement_of_prediction_and_measurement(tmp_path):
    predicted = list(trials("linear", 120, SEED, noise=0.0))
    measured = list(trials("linear", 120, SEED, MEASURED, noise=0.4))
    case = one(tmp_path / "log", predicted + measured)
    assert [s.provenance for s in case.series] == ["measured", "predicted"]
    of = lambda values: {str(v["config"]): v["microseconds"] for v in values if v["status"] == "ok"}
    p, m = of(predicted), of(measured)
    both = sorted((p[c], m[c]) for c in p.keys() & m.keys())
    a = case.agreement
    assert a
    assert a.configs == len(both) == len(a.points)
    assert a.spearman == pytest.approx(stats.spearman([x for x, _ in both], [y for _, y in both]))
    assert 0.3 < a.spearman < 0.98
    best = min(y for _, y in both)
    assert a.regret == pytest.approx(both[0][1] / best - 1)
    assert a.regret_of_5 == pytest.approx(min(y for _, y in both[:5]) / best - 1)
    assert 0 <= a.regret_of_5 <= a.regret
    assert one(tmp_path / "alone", predicted).agreement is None


@pytest.mark.parametrize(
    ("judges", "record", "winner"),
    [
        ([PREDICTED], None, ("trial", "predicted")),
        ([PREDICTED, MEASURED], None, ("trial", "measured")),
        ([PREDICTED], "predicted", ("record", "predicted")),
        ([PREDICTED, MEASURED], "predicted", ("trial", "measured")),
        ([PREDICTED, MEASURED], "measured", ("record", "measured")),
        ([], "measured", ("record", "measured")),
    ],
)
def test_the_winner_is_the_record_unless_trials_are_better_founded(tmp_path, judges, record, winner):
    values = [v for j in judges for v in trials("rms_norm", 5, SEED, j)]
    base = Base()
    if record:
        some = list(trials("rms_norm", 5, SEED))[3]
        base = based(record_of(some, provenance=record, device="" if record == "predicted" else "NVIDIA H800"))
    case = one(tmp_path / "log", values, base)
    assert case.winner
    assert (case.winner.source, case.winner.provenance) == winner
    if winner[0] == "record":
        assert case.winner.microseconds == 9


def test_what_was_superseded_is_left_out_and_counted(tmp_path):
    old = list(trials("linear", 30, SEED, source="0" * 64))
    other_model = [{**v, "judge": "predicted, model 0", "created": 0} for v in trials("linear", 12, SEED)]
    found = made(
        tmp_path / "log", [*old, *other_model, *({**v, "created": v["created"] + 500} for v in trials("linear", 40, 3))]
    )
    (case,) = found.cases
    assert (case.key.source[0], [s.trials for s in case.series]) == ("5", [40])
    assert found.superseded == 42
    assert "42 trials of older sources, compilers or models left out." in Dom(page(found)).texts


def test_targets_are_parts_and_can_be_chosen(tmp_path):
    both = [*trials("linear", 9, 1), *trials("linear", 9, 1, target="h200"), *trials("gate", 9, 2, target="h200")]
    log = read([write(tmp_path / "log", both)])
    found = report(log, Base(), [])
    assert [(p.target, p.totals.cases, p.totals.trials) for p in found.parts] == [("h800", 1, 9), ("h200", 2, 18)]
    assert [p.target for p in report(log, Base(), [], ["h200"]).parts] == ["h200"]


def test_damaged_and_foreign_lines_are_counted_and_nothing_of_them_is_shown(tmp_path):
    good = list(trials("linear", 10, SEED))
    bad = [
        {**good[0], "schema": "dsv2/trial/9"},
        {**good[1], "status": "fast"},
        {**good[2], "status": "ok", "microseconds": -1.0},
        {**good[3], "bound": 0},
        {**good[4], "key": {**good[4]["key"], "kernel": "no_such"}},
        {**good[5], "config": {"BLOCK_M": "64"}},
        {k: v for k, v in good[6].items() if k != "judge"},
        {**good[7], "reason": 5},
        {**good[8], "config": {f"k{i}": 1 for i in range(100)}},
    ]
    path = write(tmp_path / "log", [*good, *bad])
    data = path.read_bytes().splitlines(keepends=True)
    flipped = data[1].replace(b'"bound"', b'"bownd"')
    path.write_bytes(b"".join([data[0], flipped, *data[2:], b'{"torn": ', b"\xff\xfe\n"]))
    log = read([path, tmp_path / "missing"])
    assert log.damaged == 2
    assert (len(log.entries), sum(log.refused.values())) == (9, len(bad))
    shown = Dom(page(report(log, Base(), [str(path)]))).texts
    assert "2 damaged lines left out." in shown
    assert "1 line left out: an unknown status." in shown


def test_a_record_whose_meaning_changed_is_no_winner(tmp_path):
    dims = {"N": 512, "X_STRIDE": 512, "RESIDUAL": False, "INDEXED": False}
    values = list(trials("rms_norm", 5, SEED, dims=dims))
    for launch, source in ((record_of(values[3]).launch, "record"), ("0" * 16, "trial")):
        base = Base()
        base.add(record_of(values[3], launch=launch))
        found = made(tmp_path / "log", values, base)
        assert found.cases[0].winner
        assert found.cases[0].winner.source == source
        assert [n for _, n in found.refused] == ([] if source == "record" else [1])


# Plots


def test_axes_have_a_few_round_ticks_in_order_and_inside():
    for low, high in itertools.product([0.37, 1.0, 9.7, 812.0], [1.02, 1.3, 2.0, 9.0, 150.0, 1e7]):
        axis = log_axis([low, low * high], 200.0, 10.0)
        ticks = axis.ticks()
        assert 2 <= len(ticks) <= 12, (low, high, ticks)
        assert ticks == sorted(ticks)
        assert all(10 <= axis.at(t) <= 200 for t in ticks)
    a, b = Axis(1, 100, 0, 50).line
    assert a + b * math.log10(10) == pytest.approx(25)


def dots(svg: str, kind: str) -> list[tuple[float, float]]:
    (path,) = re.findall(rf'<path class="dots {kind}" d="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", path)]


def figures(html: str, kind: str) -> list[str]:
    return re.findall(rf'<figure class="plot {kind}[" ].*?</figure>', html, re.DOTALL)


def _heights(svg: str, points: list[Point]) -> list[float]:
    _, _, a, b, _ = map(float, re.findall(r'data-marks="([^"]*)"', svg)[0].split())
    return [a + b * math.log10(p.microseconds or 0) for p in points]


def test_plots_have_every_configuration_where_it_belongs(tmp_path):
    values = list(trials("linear", 160, SEED))
    found = made(tmp_path / "log", values)
    html = page(found)
    (series,) = found.cases[0].series
    ok = [p for p in series.points if p.microseconds]
    (rank,), (order,), knobs = (figures(html, k) for k in ("rank", "order", "knob"))
    assert len(knobs) == len(values[0]["config"])
    for svg, number in ((rank, lambda p: p.rank), (order, lambda p: p.trial)):
        ax, bx, ay, by, _ = map(float, re.findall(r'data-marks="([^"]*)"', svg)[0].split())
        expected = [(ax + bx * number(p), ay + by * math.log10(p.microseconds)) for p in ok]
        assert np.allclose(dots(svg, "ok"), expected, atol=0.06)
        for status in ("refused", "failed", "wrong", "impossible"):
            ticks = re.findall(rf'<path class="mark {status}" d="([^"]*)"', svg)
            assert sum(t.count("M") for t in ticks) == series.counts[status]
        (bound,) = re.findall(r'class="line bound" d="M\d+ ([\d.]+)H', svg)
        assert float(bound) == pytest.approx(ay + by * math.log10(values[0]["bound"]), abs=0.06)
    heights = [y for _, y in dots(rank, "ok")]
    assert heights == sorted(heights, reverse=True)
    assert rank.count('class="is-default"') == rank.count('class="is-winner"') == 1
    for svg in knobs:
        assert sorted(y for _, y in dots(svg, "ok faint")) == pytest.approx(sorted(_heights(svg, ok)), abs=0.06)


def test_every_plot_of_predictions_says_so(tmp_path):
    found = made(tmp_path / "log", list(trials("linear", 60, SEED)))
    html = page(found)
    plots = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert len(plots) == 2 + len(found.cases[0].series[0].effects)
    assert all("predicted, not measured" in p for p in plots)
    assert verdict(found) == PREDICTED_ONLY
    head = html[: html.index("<main>")]
    assert PREDICTED_ONLY in head
    measured = made(tmp_path / "both", [*trials("linear", 60, SEED), *trials("linear", 60, SEED, MEASURED)])
    assert PREDICTED_ONLY not in page(measured)
    both = re.findall(r"<figcaption>(.*?)</figcaption>", page(measured))
    assert sum("predicted, not measured" in p for p in both) == len(plots)
    assert sum(MEASURED in p for p in both) == len(plots)


def test_the_page_is_one_file_whose_policy_allows_its_own_script_alone(drawn):
    html = drawn.read_text("utf-8")
    d = Dom(html)
    assert [t for t, _ in d.tags if t in ("link", "iframe", "img", "object", "base", "form")] == []
    assert [a for _, a in d.tags if any(k.startswith("on") or k in ("src", "style") for k in a)] == []
    assert all(str(a["href"]).startswith("#t") for a in d.of("a"))
    assert "url(" not in html
    assert "@import" not in html
    script = html[html.rindex("<script>") + 8 : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [str(a["content"]) for a in d.of("meta") if "http-equiv" in a]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_all_is_there_without_a_script(sweep, drawn):
    d = Dom(drawn.read_text("utf-8"))
    cases = sweep[1].cases
    assert len(d.of("details", "task")) == len(cases)
    assert len(d.of("figure", "rank")) == sum(len(c.series) for c in cases)
    assert not [a for a in d.of("details", "task") if "hidden" in a]
    assert len(d.of("code", "config")) == 2 * len(cases)
    assert [a for a in d.of("nav") if "hidden" not in a] == []


# Hostile and huge


def hostile() -> list[Trial]:
    values = list(trials("linear", 30, SEED, what=HOSTILE))
    for v in values:
        v["config"] = {**v["config"], '"><img src=x onerror=owned=1>': 1 + len(v["reason"])}
        v["reason"] = HOSTILE if v["status"] != "ok" else ""
        v["facts"] = {HOSTILE[:30]: HOSTILE, "\x1b[31m": "\u202e", "list": [1], "nan": "NaN"}
        v["judge"] = f"predicted, {HOSTILE}"
    return values


def test_hostile_texts_stay_texts(tmp_path):
    html = page(made(tmp_path / "log", hostile()))
    d = Dom(html)
    assert d.of("img") == []
    assert len(d.of("script")) == 2
    assert [a for _, a in d.tags if any(k.startswith("on") for k in a)] == []
    assert HOSTILE in d.text
    assert "\x1b" not in html
    assert "\u202e" not in html
    data = html[html.index('id="data">') + 10 :]
    data = data[: data.index("</script>")]
    assert not set("<>&") & set(data)
    assert json.loads(data)["parts"][0]["cases"][0]["what"] == HOSTILE


@needs_browser
def test_hostile_texts_run_nothing_in_a_browser(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page(made(tmp_path / "log", hostile())), encoding="utf-8")
    (root,) = (d := dom(path)).of("html")
    assert root.get("data-ready") == "1"
    assert "data-owned" not in root
    assert d.of("img") == []
    assert "data-owned" not in after(
        path, "if (typeof owned !== 'undefined') document.documentElement.dataset.owned = 1"
    )
    step = (
        "const e = document.querySelector('.plot.rank svg');"
        "e.dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}));"
        "document.documentElement.dataset.told = document.querySelector('.plot.rank output').textContent"
    )
    assert HOSTILE in str(after(path, step)["data-told"])


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """100,000 trials: a fifth of them one task with as many configurations, the rest more tasks than a page holds."""
    folder = tmp_path_factory.mktemp("huge")
    base = list(trials("linear", 200, SEED))
    many = (
        {**base[i % 200], "config": {**base[i % 200]["config"], "salt": i}, "default": i == 0, "created": i}
        for i in range(20_000)
    )
    keys = [tune_logs.key("moe_up", dims={"N": n}) for n in range(MOST_CASES + 20)]
    small = list(trials("moe_up", 250, SEED))
    wide = ({**v, "key": k, "created": 0} for k in keys for v in small)
    path = write(folder / "h800.jsonl", itertools.chain(many, wide))
    started = time.process_time()
    found = report(read([path]), Base(), [str(path)])
    html = page(found)
    seconds = time.process_time() - started
    out = folder / "report.html"
    out.write_text(html, encoding="utf-8")
    return found, out, seconds


def test_a_hundred_thousand_trials_make_a_page_of_bounded_size_in_bounded_time(huge):
    found, out, seconds = huge
    assert out.stat().st_size < 15e6
    assert seconds < 20
    assert (len(found.cases), found.left_out) == (MOST_CASES, 21)
    largest = max((c.series[0] for c in found.cases), key=lambda s: s.configs)
    assert largest.configs == 20_000 == sum(largest.counts.values())
    assert len(largest.points) < 3000
    texts = Dom(out.read_text("utf-8")).text
    assert "21 tasks with the fewest trials left out." in texts
    assert f"drawn are {len(largest.points):,}, the fastest and every n-th of the others" in texts


@needs_browser
def test_the_largest_page_opens(huge):
    d = dom(huge[1])
    assert d.of("html")[0].get("data-ready") == str(MOST_CASES)
    assert d.of("p")[-1].get("id") == "errors"


# In a browser


@needs_browser
def test_the_script_makes_the_page_handy_and_fails_nowhere(sweep, drawn):
    d = dom(drawn)
    cases = sweep[1].cases
    assert d.of("html")[0].get("data-ready") == str(len(cases))
    assert "script failed" not in d.text
    shown = [a for a in d.of("details", "task") if "hidden" not in a]
    assert [(a["id"], "open" in a) for a in shown] == [("t0", True)]
    assert len(d.of("option")) == len(cases) + 1
    assert len(d.of("button", "copy")) == len(d.of("code", "config"))
    plots = [a for a in d.of("figure") if "knob" not in str(a["class"])]
    assert len(d.of("output")) == len(plots) == 2 * sum(len(c.series) for c in cases) + len(d.of("figure", "scatter"))
    assert len(d.of("figure", "scatter")) == sum(c.agreement is not None for c in cases) > 0
    (nav,) = d.of("nav")
    assert "hidden" not in nav


@needs_browser
def test_tasks_are_chosen_by_list_arrow_and_link(drawn):
    shown = "[...document.querySelectorAll('.task')].filter(t => !t.hidden).map(t => t.id + t.open).join()"
    script = f"""
      const root = document.documentElement.dataset, [list] = document.getElementsByTagName("select");
      list.value = "t3"; list.onchange(); root.list = {shown};
      document.querySelector("[aria-label='Next task']").click(); root.next = {shown};
      list.value = ""; list.onchange(); root.all = {shown}.split(",").length;
      document.querySelectorAll(".summary a")[6].click();
      addEventListener("hashchange", () => setTimeout(() => {{ root.link = {shown}; }}));
    """
    found = after(drawn, script)
    assert (found["data-list"], found["data-next"], found["data-link"]) == ("t3true", "t4true", "t6true")
    assert found["data-all"] == str(len(dom(drawn).of("details", "task")))


@needs_browser
def test_pointing_at_a_plot_tells_the_configuration(sweep, drawn):
    script = """
      const root = document.documentElement.dataset, plot = document.querySelector("#t0 .plot.rank");
      const svg = plot.querySelector("svg"), told = plot.querySelector("output");
      const box = plot.querySelector(".is-winner").getBoundingClientRect();
      const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
      svg.dispatchEvent(new PointerEvent("pointermove", at)); root.winner = told.textContent;
      const ring = plot.querySelector(".here").getBoundingClientRect();
      root.off = Math.hypot(ring.x + ring.width / 2 - at.clientX, ring.y + ring.height / 2 - at.clientY);
      svg.dispatchEvent(new KeyboardEvent("keydown", { key: "End" })); root.last = told.textContent;
    """
    found = after(drawn, script)
    case = sweep[1].cases[0]
    best = case.main.best
    config = ", ".join(f"{k} {v}" for k, v in best.config)
    assert float(str(found["data-off"])) < 1
    assert str(found["data-winner"]).endswith(f"trial {best.trial} · {config}")
    last = max(case.main.points, key=lambda p: p.rank)
    assert str(found["data-last"]).startswith(f"{last.status}: {last.reason} · trial {last.trial}")


@needs_browser
def test_tables_are_sorted_by_their_headings(sweep, drawn):
    script = """
      const root = document.documentElement.dataset, table = document.querySelector("table.summary");
      const gain = [...table.querySelectorAll("th button")].find(b => b.textContent === "gain");
      const values = () => [...table.tBodies[0].rows].map(r => r.cells[6].dataset.v).join();
      gain.click(); root.down = values(); gain.click(); root.up = values();
    """
    found = after(drawn, script)
    down, up = ([float(v) for v in str(found[f"data-{k}"]).split(",")] for k in ("down", "up"))
    assert down == sorted(down, reverse=True) == up[::-1]
    assert len(set(down)) > 5
    assert len(down) == len(sweep[1].cases)


@needs_browser
def test_a_failing_script_is_seen(drawn):
    html = drawn.read_text("utf-8")
    start = html.index('id="data">') + 10
    broken = drawn.with_name("broken.html")
    broken.write_text(f"{html[:start]}{{{html[html.index('</script>', start) :]}", encoding="utf-8")
    d = dom(broken)
    assert "The page's script failed" in d.text
    assert "data-ready" not in d.of("html")[0]


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(drawn, width):
    script = """
      const all = [document.documentElement, ...document.querySelectorAll(".scroll:has(.summary, .winners)"), ...
        document.querySelectorAll("figure, #choose")].filter(e => e.clientWidth);
      document.documentElement.dataset.over = all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.outerHTML);
      document.documentElement.dataset.seen = [innerWidth, all.length > 10];
    """
    found = after(drawn, script, width)
    assert (found["data-over"], found["data-seen"]) == ("", f"{width},true")


@needs_browser
def test_the_page_can_be_seen_light_and_dark_wide_and_narrow(drawn, tmp_path):
    light = picture(drawn, tmp_path / "light.png", 700, 500)
    dark = picture(drawn, tmp_path / "dark.png", 700, 500, "--blink-settings=preferredColorScheme=0")
    narrow = picture(framed(drawn, 360), tmp_path / "narrow.png", 500, 500)[:, :360]
    assert (light.shape[:2], narrow.shape[:2]) == ((500, 700), (500, 360))
    assert light[0, 0].min() > 240
    assert dark[0, 0].max() < 60
    for image in (light, dark, narrow):
        colours, counts = np.unique(image.reshape(-1, image.shape[2]), axis=0, return_counts=True)
        assert len(colours) > 100
        assert counts.max() < 0.97 * counts.sum()
        assert np.ptp(colours.astype(int), axis=1).max() > 80  # more than greys


def test_pictures_are_decoded_with_every_filter():
    import struct
    import zlib

    rng = np.random.default_rng(SEED)
    image = rng.integers(0, 256, (10, 9, 3), np.uint8)
    flat = image.reshape(10, 27).astype(int)
    rows = []
    for y in range(10):
        above = flat[y - 1] if y else np.zeros(27, int)
        left = np.concatenate([np.zeros(3, int), flat[y, :-3]])
        corner = np.concatenate([np.zeros(3, int), above[:-3]])
        p = left + above - corner
        distance = np.abs(p - np.stack([left, above, corner]))
        paeth = np.take_along_axis(np.stack([left, above, corner]), distance.argmin(0)[None], 0)[0]
        guess = [np.zeros(27, int), left, above, (left + above) // 2, paeth][y % 5]
        rows.append(bytes([y % 5]) + ((flat[y] - guess) % 256).astype(np.uint8).tobytes())
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", 9, 10, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows)))
    assert (decode(png + chunk(b"IEND", b"")) == image).all()


# The command


def run(*argv: object) -> dict[str, Any]:
    """The JSON object of the command, in this process, valid under its schema."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(["tune", "report", *map(str, argv), "--json"])
    value = checked(out.getvalue())
    assert value["exit"] == code
    return value


def test_the_command_writes_the_page_and_says_what_matters(tmp_path, sweep):
    path, expected = sweep
    out = tmp_path / "report.html"
    ran = cli("tune", "report", "--log", path, "--records", write(tmp_path / "none", []), "-o", out)
    assert ran.code == 0, ran.err
    rows = ran.out.splitlines()
    assert (rows[0], len(rows)) == ("h800", len(expected.cases) + 2)
    assert re.match(r"linear +decode, batch 1 +rows 1 +120 +\d+ .*measured on NVIDIA Made Up$", rows[2])
    assert "warning: 18 of 24 winners are predicted, not measured." in ran.lines
    assert ran.lines[-1] == f"wrote {out}"
    assert out.read_text("utf-8").startswith("<!doctype html>")


def test_the_json_is_the_data_of_the_page(tmp_path, sweep):
    path, expected = sweep
    out = tmp_path / "report.html"
    value = run("--log", path, "--records", write(tmp_path / "none", []), "-o", out)
    assert value["report_file"] == str(out)
    assert value["report"]["parts"] == json.loads(json.dumps(expected.to_json(points=False)))["parts"]
    assert '"points"' not in json.dumps(value)
    html = out.read_text("utf-8")
    start = html.index('id="data">') + 10
    embedded = json.loads(html[start : html.index("</script>", start)])
    for part in embedded["parts"]:
        for case in part["cases"]:
            for holder in [*case["series"], *filter(None, [case["agreement"]])]:
                assert holder.pop("points")
    assert embedded == value["report"]


def test_the_command_reads_your_own_logs_and_records(tmp_path, monkeypatch):
    monkeypatch.setenv("DSV2_CACHE_DIR", str(tmp_path / "cache"))
    dims = {"N": 512, "X_STRIDE": 512, "RESIDUAL": False, "INDEXED": False}
    values = list(trials("rms_norm", 5, SEED, target="h200", dims=dims))
    log = tmp_path / "cache" / "tuning" / "trials" / "h200.jsonl"
    log.parent.mkdir(parents=True)
    write(log, values)
    lines.append(tmp_path / "cache" / "tuning" / "h200.jsonl", [record_of(values[2]).to_json()])
    value = run("--gpu", "h200", "-o", tmp_path / "r.html")
    (case,) = [c for p in value["report"]["parts"] for c in p["cases"] if c["series"]]
    assert (case["winner"]["source"], case["winner"]["config"]) == ("record", values[2]["config"])


def test_the_command_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DSV2_CACHE_DIR", str(tmp_path / "cache"))
    log, empty = write(tmp_path / "log", list(trials("rms_norm", 5, SEED))), write(tmp_path / "empty", [])
    page_at = tmp_path / "r.html"
    for code, argv in (
        (2, ["--log", log, "-o", tmp_path / "r.svg"]),
        (2, ["--log", log, "-o", tmp_path / "no" / "r.html"]),
        (2, ["--log", log, "-o", tmp_path]),
        (2, ["--gpu", "h2000", "-o", page_at]),
        (2, ["--gpu", "cpu", "-o", page_at]),
        (2, ["--log", log]),
        (3, ["--log", tmp_path / "missing", "-o", page_at]),
        (3, ["--log", empty, "--records", empty, "-o", page_at]),
    ):
        assert run(*argv)["exit"] == code, argv
        assert not page_at.exists()
