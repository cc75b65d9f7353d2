"""Sequences that start from a cache computed elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import Engine
from tests import toy_engine
from tests.toy_engine import LAYERS, NAN, VOCAB, WIDTH

LENGTHS = np.array([9, 4, 17])
TOKENS = np.random.default_rng(3).integers(NAN + 1, VOCAB, (3, 20))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines") / "toy"
    toy_engine.build(out)
    with Engine.load(out, threads=1) as e:
        yield e


@pytest.fixture(scope="module")
def computed(engine):
    """Cached rows [layers, 3, 20, width] after a prefill; what lies past a row's length is huge, to be seen if used."""
    with engine.session(3, 64) as session:
        session.prefill(TOKENS, LENGTHS)
        rows = np.full((LAYERS, 3, 20, WIDTH), 1e30, np.float32)
        for b, n in enumerate(LENGTHS):
            rows[:, b, :n] = [view[0] for view in session._store._cache.views(b, LENGTHS[b : b + 1])]
    return rows


@pytest.mark.parametrize("slots", [None, [3, 0, 2]])
def test_restored_sequences_go_on_as_if_prefilled(engine, computed, slots):
    with engine.session(4, 64) as session:
        session.prefill(np.full((4, 30), NAN + 2), np.full(4, 30))
        session.restore(computed, LENGTHS, slots)
        chosen = slots or [0, 1, 2]
        assert [session.length(s) for s in chosen] == LENGTHS.tolist()
        logits = session.decode(TOKENS[np.arange(3), LENGTHS], slots)
    for got, row, n in zip(logits, TOKENS, LENGTHS, strict=True):
        expected = toy_engine.oracle(toy_engine.ToySource(), row[: n + 1].tolist())
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


MISTAKES = {
    "a layer is missing": (lambda r: r[1:], LENGTHS, None, "Cached rows are"),
    "another width": (lambda r: r[..., 1:], LENGTHS, None, "Cached rows are"),
    "a dim is missing": (lambda r: r[:, 0], LENGTHS, None, "Cached rows are"),
    "NaN": (lambda r: np.where(r == 1e30, np.nan, r), LENGTHS, None, "not finite"),
    "longer than the rows": (lambda r: r, [9, 4, 21], None, "20 columns"),
    "no position": (lambda r: r, [9, 0, 17], None, "Row 1"),
    "a row without a length": (lambda r: r, [9, 4], None, "3 rows"),
    "a slot twice": (lambda r: r, LENGTHS, [1, 2, 1], "twice"),
    "more than a slot holds": (lambda r: np.repeat(r, 4, 2), [9, 4, 70], None, "holds 64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_changes_nothing(engine, computed, mistake):
    change, lengths, slots, said = MISTAKES[mistake]
    with engine.session(4, 64) as session:
        session.prefill(TOKENS[:1], [5])
        with pytest.raises(UsageError, match=said):
            session.restore(change(computed), lengths, slots)
        assert session.length(0) == 5
        with pytest.raises(UsageError, match="holds no sequence"):
            session.length(1)
