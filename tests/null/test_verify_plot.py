"""The page of a report: every section drawn where its error is, nothing from outside, names escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from dsv2_compile.errors import UsageError
from dsv2_compile.verify.diagnosis import Finding
from dsv2_compile.verify.metrics import Errors
from dsv2_compile.verify.plot import figure, page, write_report
from dsv2_compile.verify.report import Report, Section
from dsv2_compile.verify.rule import judge

SVG = "{http://www.w3.org/2000/svg}"
LAYERS = 5


def errors(level: float) -> Errors:
    return Errors(level, level, level, rows=8, cosine_p5=1.0, scale=1.0, largest=1.0, nan=0, inf=0)


def section(phase: str, layer: int | None, level: float) -> Section:
    return Section("batch", phase, layer, judge(errors(level), errors(2e-7), 1e-7), False, None)


@pytest.fixture
def report():
    """Layer 3 of decode is off, all else rises slowly."""
    made = [
        section(phase, layer, 1e-3 if (phase, layer) == ("decode", 3) else 1e-7 * (1 + (layer or 0) / 10))
        for phase in ("prefill", "decode")
        for layer in [*range(LAYERS), None]
    ]
    counts = {"choices": 4, "unstable": 0, "flips": 0}
    found = (Finding("batch", "decode", 3, (2, 3), "rows of layer 3 are off"),)
    return Report("<b>engine & co", "float32", "float64", tuple(made), found, (), (), True, 0, counts)


def circles(svg: str) -> list[list[ET.Element]]:
    return [g.findall(f"{SVG}circle") for g in ET.fromstring(svg).findall(f"{SVG}g")]


def test_every_section_is_a_point_and_the_bad_one_stands_out(report):
    prefill, decode = circles(figure(report))
    assert len(prefill) == len(decode) == LAYERS + 1
    heights = [float(c.attrib["cy"]) for c in decode]
    assert heights.index(min(heights)) == 3
    inks = [c.attrib["fill"] for c in decode]
    assert inks.count(inks[3]) == 1
    assert "over the limit" in (decode[3][0].text or "") and "over the limit" not in (decode[2][0].text or "")
    across = [float(c.attrib["cx"]) for c in decode]
    assert across == sorted(across)


def test_larger_errors_stand_higher(report):
    levels = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
    rising = replace(report, sections=tuple(section("decode", i, v) for i, v in enumerate(levels)))
    heights = [float(c.attrib["cy"]) for c in circles(figure(rising))[0]]
    steps = [a - b for a, b in pairwise(heights)]
    assert min(steps) > 0 and max(steps) - min(steps) < 0.3, "a decade is as high as any other"


@pytest.mark.parametrize("level", [0.0, float("inf"), float("nan")])
def test_values_a_log_axis_has_no_place_for(report, level):
    odd = replace(report, sections=(section("decode", 0, level), section("decode", 1, 1e-6)))
    (points,) = circles(figure(odd))
    assert all(0 <= float(c.attrib["cy"]) <= 250 for c in points)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {k}" for k, _ in attrs if k in ("src", "href")]
        self.found += [tag] if tag in ("script", "link", "b") else []


def test_the_page_is_one_file_and_names_are_text(report):
    text = page(report)
    links = Links()
    links.feed(text)
    assert links.found == []
    assert "&lt;b&gt;engine &amp; co" in text
    assert "Does not compute" in text


def test_files_and_endings(report, tmp_path):
    write_report(report, tmp_path / "r.html")
    write_report(report, tmp_path / "r.svg")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert ET.parse(tmp_path / "r.svg").getroot().tag == f"{SVG}svg"
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(report, tmp_path / "r.pdf")
