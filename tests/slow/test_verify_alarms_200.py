"""Fewer than one right engine in a hundred is blamed: 200 seeds of every config."""

from __future__ import annotations

import pytest

from tests.null.test_verify_alarms import CASES, alarms

pytestmark = pytest.mark.slow
SEEDS = 200


@pytest.mark.parametrize("name", CASES)
def test_fewer_than_one_alarm_in_a_hundred(name, tmp_path):
    found, nearest = alarms(name, range(1000, 1000 + SEEDS), tmp_path)
    worst = f"median {nearest[SEEDS // 2]:.2f}, worst {nearest[-1]:.2f}"
    print(f"{name}: {len(found)} alarms in {SEEDS} seeds; nearest to a limit: {worst}")
    assert len(found) < SEEDS / 100
