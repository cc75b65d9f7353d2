"""The faults of `test_tune_faults`, many of each."""

from __future__ import annotations

import pytest

from tests.null.test_tune_faults import check_after_kills, check_compilers, kill_parents_and_workers

pytestmark = pytest.mark.slow


def test_twenty_kills_at_random_moments(tmp_path):
    kill_parents_and_workers(tmp_path, 20, seed=20)
    check_after_kills(tmp_path, 20)


def test_fifty_compilers_that_crash(tmp_path, monkeypatch):
    check_compilers(tmp_path, 50, monkeypatch)
