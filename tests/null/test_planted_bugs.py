"""Bugs planted on purpose, one at a time: every one is caught, and what is to blame is named."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from dsv2_compile.errors import NumericError, PassError
from dsv2_compile.passes.pipeline import pipeline
from dsv2_compile.verify import passes as verify_passes
from dsv2_compile.verify.check import check
from dsv2_compile.verify.diagnosis import Finding
from dsv2_compile.verify.passes import check_passes
from tests.planted_engines import ENGINE_BUGS, EngineBug
from tests.planted_passes import PASS_BUGS, PassBug
from tests.small_engine import SMALL, build, naive, small_golden


@pytest.fixture(autouse=True)
def exports_once(monkeypatch):
    monkeypatch.setattr(verify_passes, "export", naive)


def blamed(bug: PassBug) -> str | None:
    """The pass that the check on the twin names, None if it finds nothing."""
    with pytest.MonkeyPatch.context() as m:
        bug.plant(m)
        try:
            check_passes(SMALL, bug.phase, pipeline(forms={bug.phase: bug.form}))
        except (NumericError, PassError) as e:
            found = re.match(r"(?:after )?pass (\w+) ", e.cause)
            print(f"{bug.culprit}: {bug.name}: {e.cause[:160]}")
            return found[1] if found else ""
    return None


def tell(what: str, planted: int, caught: int, named: int, start: float) -> None:
    print(f"{what}: {planted} planted, {caught} caught, {named} named ({time.perf_counter() - start:.0f} s)")


def test_every_bug_in_a_pass_is_caught_and_the_pass_is_named():
    start = time.perf_counter()
    named = {bug: blamed(bug) for bug in PASS_BUGS}
    wrong = {f"{b.culprit}: {b.name}": found for b, found in named.items() if found != b.culprit}
    caught = sum(found is not None for found in named.values())
    tell("passes", len(PASS_BUGS), caught, len(PASS_BUGS) - len(wrong), start)
    assert wrong == {}
    assert {b.culprit for b in PASS_BUGS} == {p.name for p in pipeline()}


@pytest.mark.parametrize(("phase", "form"), [("prefill", "absorbed"), ("decode", "absorbed"), ("decode", "merged")])
def test_without_a_bug_no_pass_is_blamed(phase, form):
    records = check_passes(SMALL, phase, pipeline(forms={phase: form}))
    assert all(r.error is not None for r in records)


class Judged(NamedTuple):
    """What a check says about an engine: how it ends, and its finding on the path of the bug."""

    passed: bool
    finding: Finding | None
    phases: tuple[str, ...]


def judged(bug: EngineBug, folder: Path) -> Judged:
    with pytest.MonkeyPatch.context() as m:
        bug.plant(m)
        report = check(build(folder, spoil=bug.spoil), SMALL, small_golden(), "small")
    mine = [f for f in report.findings if f.path == bug.path]
    print(f"{bug.name}: {mine[0] if mine else report.problems[:1]}")
    return Judged(report.passed, mine[0] if mine else None, tuple(f.phase for f in mine))


def is_right(bug: EngineBug, r: Judged) -> bool:
    """The first bad layer, the one to blame and the programs are those of the bug."""
    found = r.finding is not None and r.finding.layer == bug.layer and bug.culprit in r.finding.suspects
    return found and set(r.phases) == set(bug.phases)


def test_every_bug_behind_the_passes_is_caught_and_the_layer_is_named(tmp_path):
    start = time.perf_counter()
    results = {bug: judged(bug, tmp_path / str(i)) for i, bug in enumerate(ENGINE_BUGS)}
    wrong = {bug.name: r for bug, r in results.items() if not is_right(bug, r)}
    caught = sum(not r.passed for r in results.values())
    tell("engines", len(ENGINE_BUGS), caught, len(ENGINE_BUGS) - len(wrong), start)
    assert wrong == {}
    assert caught == len(ENGINE_BUGS)
