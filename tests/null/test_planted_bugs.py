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


def test_every_bug_in_a_pass_is_caught_and_the_pass_is_named():
    start = time.perf_counter()
    named = {bug: blamed(bug) for bug in PASS_BUGS}
    caught = [bug for bug, found in named.items() if found is not None]
    right = [bug for bug, found in named.items() if found == bug.culprit]
    seconds = time.perf_counter() - start
    print(f"passes: {len(PASS_BUGS)} planted, {len(caught)} caught, {len(right)} named ({seconds:.0f} s)")
    wrong = {f"{b.culprit}: {b.name}": found for b, found in named.items() if found != b.culprit}
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


def test_every_bug_behind_the_passes_is_caught_and_the_layer_is_named(tmp_path):
    start = time.perf_counter()
    results = {bug: judged(bug, tmp_path / str(i)) for i, bug in enumerate(ENGINE_BUGS)}
    caught = [bug for bug, r in results.items() if not r.passed]
    wrong = {
        bug.name: r
        for bug, r in results.items()
        if r.finding is None
        or r.finding.layer != bug.layer
        or bug.culprit not in r.finding.suspects
        or set(r.phases) != set(bug.phases)
    }
    right = len(ENGINE_BUGS) - len(wrong)
    seconds = time.perf_counter() - start
    print(f"engines: {len(ENGINE_BUGS)} planted, {len(caught)} caught, {right} named ({seconds:.0f} s)")
    assert wrong == {}
    assert len(caught) == len(ENGINE_BUGS)
