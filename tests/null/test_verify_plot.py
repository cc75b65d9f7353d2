"""The page of a report: every section and level a point where its error is, nothing from outside, names escaped."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from dsv2_compile.errors import UsageError
from dsv2_compile.verify.chart import HEIGHT, WIDTH
from dsv2_compile.verify.diagnosis import Finding
from dsv2_compile.verify.metrics import Errors, Figures, Top1
from dsv2_compile.verify.plot import charts, page, write_report
from dsv2_compile.verify.report import Agreement, Consistency, Level, Report, Section
from dsv2_compile.verify.rule import judge

SVG = "{http://www.w3.org/2000/svg}"
LAYERS = 5
NAME = "<b>engine & co"


def section(path: str, phase: str, layer: int | None, level: float) -> Section:
    error = Errors(level, level, level, 8, 1.0, 1.0, 1.0, 0, 0)
    verdict = judge(error, Figures(2e-7, 2e-7, 2e-7), Figures(2.5, 2.5, 2.5), 1e-7)
    return Section(path, phase, layer, verdict, False, None)


def level_of(phase: str, layer: int | None, bad: bool = False) -> Level:
    return Level(phase, layer, 20, 3e3 if bad else 0.4)


@pytest.fixture
def report():
    """Layer 3 of decode in batches is off, all else rises slowly; chunks have no decode."""
    where = [("batch", "prefill"), ("batch", "decode"), ("chunks", "prefill")]
    probes = [*range(LAYERS), None]
    sections = [
        section(path, phase, i, 1e-3 if (phase, i) == ("decode", 3) else 1e-7 * (1 + (i or 0) / 10))
        for path, phase in where
        for i in probes
    ]
    return Report(
        engine=NAME,
        dtype="float32",
        oracle_dtype="float64",
        sections=tuple(sections),
        levels=tuple(level_of(p, i, (p, i) == ("decode", 3)) for p in ("prefill", "decode") for i in probes),
        findings=(Finding("batch", "decode", 3, (2, 3), "rows of layer 3 are off & <so> on"),),
        top1=(Agreement("batch", Top1(27, 22, 3, 1), 4),),
        consistency=(Consistency("chunks", 84, 6, 1.7e-6, False),),
        repeatable=True,
        padding_nan=7,
        routing={"choices": 261, "unstable": 5, "flips": 2},
        spread=Figures(2.5, 2.5, 2.5),
    )


def panels(svg: str) -> dict[str, ET.Element]:
    groups = ET.fromstring(svg).findall(f"{SVG}g")
    return {str(g.find(f"{SVG}text[@class='name']").text): g for g in groups}  # type: ignore[union-attr]


def marks(group: ET.Element, kind: str) -> list[tuple[float, float]]:
    """Where the points or the line of ``kind`` are."""
    if kind == "error":
        return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in group.findall(f"{SVG}circle")]
    (line,) = group.findall(f"{SVG}polyline[@class='{kind}']")
    return [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]  # type: ignore[misc]


def test_a_panel_for_every_path_and_program_with_every_probe_and_the_lines(report):
    found = panels(charts(report))
    average = [f"{phase}, every path on average, in limits" for phase in ("prefill", "decode")]
    assert list(found) == [*average, "prefill, batch", "decode, batch", "prefill, chunks"]
    for name, group in found.items():
        points = marks(group, "error")
        assert len(points) == len(marks(group, "limit")) == LAYERS + 1
        assert [x for x, _ in points] == [x for x, _ in marks(group, "limit")] == sorted(x for x, _ in points)
        if name not in average:
            assert [x for x, _ in marks(group, "e0")] == [x for x, _ in points]
            assert all(e > limit for (_, e), (_, limit) in zip(marks(group, "e0"), marks(group, "limit"), strict=True))
        labels = [t.text for t in group.findall(f"{SVG}text[@class='tick']")]
        assert labels[-LAYERS - 1 :] == ["0", "1", "2", "3", "4", "logits"]


def test_the_bad_point_stands_above_its_limit_and_says_why(report):
    found = panels(charts(report))
    for name in ("decode, batch", "decode, every path on average, in limits"):
        heights = [y for _, y in marks(found[name], "error")]
        over = [
            i for i, (y, (_, limit)) in enumerate(zip(heights, marks(found[name], "limit"), strict=True)) if y < limit
        ]
        assert over == [3]
        kinds = [c.attrib["class"] for c in found[name].findall(f"{SVG}circle")]
        assert [i for i, kind in enumerate(kinds) if kind == "error bad"] == [3]
    told = [c[0].text for c in found["decode, batch"].findall(f"{SVG}circle")]
    assert (
        told[3]
        == "layer 3: 1.00e-03, eager mode 2.00e-07, limit 1.23e-06, 8 rows; over the limit: rel_l2_p95, angle, max_abs"
    )
    assert told[-1] == "logits: 1.00e-07, eager mode 2.00e-07, limit 1.23e-06, 8 rows"


def test_a_decade_is_as_high_as_any_other(report):
    levels = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
    rising = replace(report, sections=tuple(section("batch", "decode", i, v) for i, v in enumerate(levels)), levels=())
    heights = [y for _, y in marks(panels(charts(rising))["decode, batch"], "error")]
    steps = [a - b for a, b in itertools.pairwise(heights)]
    assert min(steps) > 10
    assert max(steps) - min(steps) < 0.3


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_values_a_log_axis_has_no_place_for_stay_inside(report, value):
    odd = replace(report, sections=(section("batch", "decode", 0, value), section("batch", "decode", 1, 1e-6)))
    points = marks(panels(charts(odd))["decode, batch"], "error")
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert "nan" not in "".join(charts(odd).split("<title>")[0])


@pytest.mark.parametrize("layers", [1, 27, 60])
def test_any_depth_has_names_that_do_not_overlap(report, layers):
    deep = replace(
        report, sections=tuple(section("batch", "decode", i, 1e-7) for i in [*range(layers), None]), levels=()
    )
    group = panels(charts(deep))["decode, batch"]
    assert len(marks(group, "error")) == layers + 1
    ticks = [t for t in group.findall(f"{SVG}text[@class='tick']") if t.attrib["y"] == str(HEIGHT - 8)]
    at = [float(t.attrib["x"]) for t in ticks]
    assert (ticks[0].text, ticks[-1].text) == ("0", "logits")
    assert len(ticks) <= 14
    assert all(b - a > 18 for a, b in itertools.pairwise(at))


class Reader(HTMLParser):
    """Text by tag, and everything that would be fetched or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.outside += [f"{tag} {k}" for k, _ in attrs if k in ("src", "href") or k.startswith("on")]
        self.outside += [tag] if tag in ("script", "link", "iframe", "img") else []

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_the_page_is_one_file_and_names_are_text(report):
    text = page(report)
    read = Reader(text)
    assert read.outside == []
    assert "b" not in read.tags
    assert "so" not in read.tags
    assert "url(" not in text
    assert "@import" not in text
    assert NAME in read.cells
    assert "batch, decode: rows of layer 3 are off & <so> on" in read.cells
    assert "Does not compute what the eager model computes." in read.cells
    good = replace(report, findings=(), top1=())
    assert "Computes what the eager model computes." in Reader(page(good)).cells


def test_every_count_is_on_the_page(report):
    cells = Reader(page(report.with_oracle(1e-13, 1e-12))).cells
    for row in (
        ["batch", "27", "22", "3", "1", "4"],
        ["chunks", "84", "6", "1.7e-06"],
        ["router choices", "261"],
        ["that rounding can turn", "5"],
        ["that eager mode turned", "2"],
        ["the same input twice", "same bits"],
        ["NaN in padding, which nothing reads", "7"],
        ["golden data against the checkpoint", "1.0e-13 (limit 1.0e-12)"],
        ["batch", "decode", "layer 3", "8", "1.00e-03"],
    ):
        assert any(cells[i : i + len(row)] == row for i in range(len(cells))), row


def test_files_and_endings(report, tmp_path):
    write_report(report, tmp_path / "r.html")
    write_report(report, tmp_path / "r.svg")
    assert (tmp_path / "r.html").read_text("utf-8") == page(report)
    root = ET.parse(tmp_path / "r.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert "--red:#" in str(root.find(f"{SVG}style").text)  # type: ignore[union-attr]
    for name in ("r.png", "r"):
        with pytest.raises(UsageError, match="cannot be written"):
            write_report(report, tmp_path / name)
