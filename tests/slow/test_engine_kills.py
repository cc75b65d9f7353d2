"""Case 54 at length: 200 random kills on top of one at every disk operation."""

from __future__ import annotations

import pytest

from tests.null.test_engine_writer import kill

pytestmark = pytest.mark.slow


def test_200_random_kills_leave_the_old_or_the_new_engine(tmp_path):
    seen = kill(tmp_path, 200)
    assert sum(seen.values()) >= 300, seen
    assert seen["old"] >= 150
    assert seen["new"] + seen["finished"] >= 1
