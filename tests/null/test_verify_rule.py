"""The parts of the check: errors, limits, router gaps, plans, findings."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dsv2_compile.errors import UsageError
from dsv2_compile.verify import diagnosis
from dsv2_compile.verify import plan as plans
from dsv2_compile.verify.metrics import Errors, Figures, errors, figures, row_errors, top1, upper
from dsv2_compile.verify.routing import analyse, chosen, gaps
from dsv2_compile.verify.rule import FACTOR, Verdict, eager_noise, eps, farthest, judge, roundings, typical
from tests.small_engine import SMALL

RNG = np.random.default_rng(0)
ONE = Figures(1.0, 1.0, 1.0)


# Errors --------------------------------------------------------------------------------------------


def test_row_errors_by_their_definitions():
    b = RNG.standard_normal((7, 5))
    a = b + 1e-3 * RNG.standard_normal((7, 5))
    rel, angle, largest = row_errors(a, b)
    for i in range(7):
        cosine = a[i] @ b[i] / np.linalg.norm(a[i]) / np.linalg.norm(b[i])
        assert rel[i] == pytest.approx(np.linalg.norm(a[i] - b[i]) / np.linalg.norm(b[i]))
        assert angle[i] == pytest.approx(np.arccos(cosine), rel=1e-6)
        assert largest[i] == np.abs(a[i] - b[i]).max()


def test_angles_are_exact_where_a_cosine_cancels():
    """1e-12 apart, the cosine is 1 to the last bit; opposite vectors are pi apart; a scale is no angle."""
    b = np.eye(3)[:1]
    assert row_errors(np.array([[1, 1e-12, 0]]), b)[1] == pytest.approx(1e-12)
    assert row_errors(-b, b)[1] == pytest.approx(np.pi)
    assert row_errors(3 * b, b)[1] == 0
    assert errors(3 * b, b).scale == 3


def test_rows_that_are_not_finite_are_counted_and_left_out():
    b = RNG.standard_normal((4, 3))
    a = b.copy()
    a[0, 1], a[2, 0], a[2, 2] = np.nan, np.inf, np.nan
    e = errors(a, b)
    assert (e.nan, e.inf, e.rows) == (2, 1, 4)
    assert (e.rel_l2_p95, e.max_abs) == (0, 0)
    assert errors(np.full((2, 3), np.nan), b[:2]).rel_l2_p95 == np.inf
    with pytest.raises(ValueError, match="cannot compare"):
        errors(a, b[:3])


def test_the_percentile_is_one_of_the_values():
    values = RNG.random(33)
    assert upper(values) == sorted(values)[31]
    assert upper(values[:3]) == values[:3].max()
    assert figures(np.array([values, 2 * values, 3 * values])).max_abs == 3 * values.max()


def test_top1_counts_margins_beyond_the_tolerance_apart():
    expected = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.3], [0.0, 0.3]])
    actual = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.3], [0.3, 0.0]])
    t = top1(actual, expected, 0.2)
    assert (t.stable, t.stable_agree, t.unstable, t.unstable_agree) == (2, 1, 2, 1)


# The rule ------------------------------------------------------------------------------------------


def error(level: float, nan: int = 0) -> Errors:
    return Errors(level, level, level, 8, 1.0, 1.0, 1.0, nan, 0)


def test_the_limit_is_the_last_value_that_passes():
    e0, spread, allowance = Figures(1e-6, 1e-6, 1e-6), Figures(3.0, 3.0, 3.0), 1e-7
    limit = FACTOR**2 * 3.0 * 1e-6 + allowance
    assert judge(error(limit), e0, spread, allowance).passed
    over = judge(error(np.nextafter(limit, 1)), e0, spread, allowance)
    assert over.failed == ("rel_l2_p95", "angle", "max_abs")
    assert over.ratio == pytest.approx(1)
    assert judge(error(0.0, nan=1), e0, spread, allowance).failed == ("nonfinite",)
    assert not judge(error(float("nan")), e0, spread, allowance).passed
    assert not judge(error(1e-9), Figures(*[float("nan")] * 3), spread, allowance).passed


def test_the_typical_error_is_one_at_the_limit_of_every_row():
    e0 = RNG.random(50) * 1e-6
    assert typical(FACTOR * e0 + 1e-7, e0, 1e-7) == pytest.approx(1)
    assert typical(np.r_[FACTOR * e0 + 1e-7, np.nan], np.r_[e0, 1e-6], 1e-7) == np.inf


def test_the_noise_of_a_row_is_the_mean_square_of_the_runs_and_at_least_that_of_the_layer():
    runs = np.ones((4, 3, 5))
    runs[:, :, 0] = [[1], [2], [3], [4]]
    runs[:, :, 1] = 0
    pooled = np.array([False, False, True, True, True])
    e0 = eager_noise(runs, pooled)
    assert e0[0].tolist() == pytest.approx([7.5**0.5, 1, 1, 1, 1])


def test_the_spread_is_how_far_one_run_was_from_the_others():
    runs = np.ones((4, 3, 6))
    everything = np.ones(6, bool)
    assert farthest(runs, everything).tolist() == [1, 1, 1]
    runs[2, 1, 5] = 9
    assert farthest(runs, everything).tolist() == [1, 9, 1]
    assert farthest(runs, np.arange(6) < 5).tolist() == [1, 1, 1]
    runs[0, 0, 0] = np.inf
    assert np.isfinite(farthest(runs, everything)).all()


def test_the_allowance_grows_with_depth_and_counts_what_the_model_has():
    deep = [eps(SMALL, i, "float32") for i in range(SMALL.num_hidden_layers)]
    assert deep == sorted(deep)
    assert eps(SMALL, None, "float32") > deep[-1]
    assert eps(SMALL, 2, "bfloat16") == pytest.approx(eps(SMALL, 2, "float32") * 2**16)
    assert roundings(replace(SMALL, q_lora_rank=None), 2) == roundings(SMALL, 2) - 2 * 3
    assert roundings(replace(SMALL, n_routed_experts=0), 3) == roundings(SMALL, 3) - 2 * 5


# Routing -------------------------------------------------------------------------------------------

ROUTERS = {
    "greedy": replace(SMALL, topk_method="greedy", n_group=1, topk_group=1),
    "grouped": SMALL,
    "one group kept": replace(SMALL, topk_group=1),
    "every expert": replace(SMALL, topk_method="greedy", num_experts_per_tok=12),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_change_below_half_the_gap_turns_no_choice(name):
    """And one a little above it does, in the best direction."""
    config = ROUTERS[name]
    logits = RNG.standard_normal((300, 12))
    gap = gaps(config, logits)
    before = chosen(config, logits)
    assert (before.sum(1) == config.num_experts_per_tok).all()
    if name == "every expert":
        assert np.isinf(gap).all()
        return
    for _ in range(20):
        shift = RNG.choice([-1.0, 1.0], logits.shape) * 0.499 * gap[:, None]
        assert (chosen(config, logits + shift) == before).all()
    towards = logits + np.where(before, -0.501, 0.501) * gap[:, None]
    turned = (chosen(config, towards) != before).any(1)
    assert turned.mean() > (0.5 if config.grouped else 0.999)  # with groups the nearest turn may be that of a group


def test_ties_go_to_the_lowest_expert():
    assert chosen(ROUTERS["greedy"], np.zeros((1, 12)))[0].nonzero()[0].tolist() == [0, 1, 2]
    assert gaps(ROUTERS["greedy"], np.zeros((1, 12)))[0] == 0


def test_a_shaky_choice_reaches_later_layers_of_its_own_sequence_only():
    lengths = (5, 4)
    logits = np.tile(np.linspace(1, 2, 12), (9, 1))
    shaky = logits.copy()
    shaky[2] = 1.0  # position 2 of the first sequence has nothing but ties
    config = ROUTERS["greedy"]
    noise = {i: np.full(9, 1e-6) for i in (1, 2, 3)}
    turned = {i: np.zeros(9, bool) for i in (1, 2, 3)}
    turned[2][2] = turned[3][4] = True
    r = analyse(config, "float32", lengths, {1: logits, 2: shaky, 3: logits}, noise, turned)
    assert r.clean[:3].all()
    for after in (3, 4):
        assert r.clean[after].tolist() == [True, True, False, False, False, True, True, True, True]
    assert (r.choices, r.unstable, r.flips) == (27, 1, 1)


# Plans ---------------------------------------------------------------------------------------------

LIMITS = [(1, 2), (1, 3), (2, 5), (3, 17), (3, 40), (3, 96), (8, 4096), (2, 163840)]


@pytest.mark.parametrize(("batch", "positions"), LIMITS)
def test_a_plan_stays_within_the_limits_and_its_paths_cover_it(batch, positions):
    p = plans.make(SMALL, batch, positions)
    assert len(p.near) <= batch
    assert all(1 <= n < len(ids) for n, ids in zip(p.prompts, p.tokens, strict=True) if len(ids) != plans.FAR_TOKENS)
    for b, ids in enumerate(p.tokens):
        assert p.past[b] + len(ids) <= positions
        assert all(0 <= t < SMALL.vocab_size for t in ids)
    for column in itertools.zip_longest(*(p.tokens[b] for b in p.near)):
        present = [t for t in column if t is not None]
        assert len(set(present)) == len(present), "a row is told by what it is fed"
    for name, calls in p.paths.items():
        done: dict[int, int] = {}
        for c in calls:
            for b, slot, start, stop in zip(c.sequences, c.slots, c.start, c.stop, strict=True):
                assert 0 <= slot < batch
                assert p.past[b] <= start < stop <= p.past[b] + len(p.tokens[b])
                assert name == "far" or done.get(b, 0) == start
                assert c.method != "decode" or stop == start + 1
                done[b] = stop
        whole = {b: p.past[b] + len(p.tokens[b]) for b in done}
        assert name == "far" or done == whole
    assert (
        {b for c in p.paths["batch"] for b in c.sequences}
        == set(p.near)
        == {b for c in p.paths["chunks"] for b in c.sequences}
    )
    assert ("far" in p.paths) == (positions > 80)


def test_an_engine_without_room_for_a_step_cannot_be_verified():
    with pytest.raises(UsageError, match="cannot decode"):
        plans.make(SMALL, 1, 1)


def test_synthetic_rows_are_the_same_everywhere():
    rows = plans.synthetic(SMALL, 2, 1000)
    assert rows.shape == (1000, SMALL.cache_dim)
    assert rows[0, :3].tolist() == [-0.03839782252907753, -0.609768807888031, 1.251510739326477]
    assert np.mean(rows**2) == pytest.approx(1, abs=0.02)
    assert not np.array_equal(rows, plans.synthetic(SMALL, 1, 1000))


# Findings ------------------------------------------------------------------------------------------


def verdicts(*bad: int | None) -> dict[int | None, Verdict]:
    return {
        i: judge(error(1e-3 if i in bad else 1e-9), Figures(1e-7, 1e-7, 1e-7), ONE, 1e-7)
        for i in [*range(SMALL.num_hidden_layers), None]
    }


@pytest.mark.parametrize(
    ("bad", "half", "layer", "suspects", "words"),
    [
        ((0, 1, 2, 3, None), "", 0, (0,), "look at the embedding"),
        ((2, 3, None), "", 2, (1, 2), "rows of layer 1 are right: look at layer 1 after its cache rows"),
        ((1, 2), "", 1, (0, 1), "output projection, MLP)"),
        ((3,), "", 3, (2, 3), "output projection, experts)"),
        ((None,), "", None, (3,), "the logits are off"),
        ((2,), "key", 2, (2,), "only the key in the rows of layer 2"),
        ((2,), "latent", 2, (2,), "only the latent in the rows of layer 2"),
    ],
)
def test_a_finding_names_the_first_bad_layer_and_what_feeds_it(bad, half, layer, suspects, words):
    f = diagnosis.finding("batch", "decode", verdicts(*bad), SMALL, half, "prefill is right")
    assert f is not None
    assert (f.layer, f.suspects) == (layer, suspects)
    assert words in f.what
    assert str(f).startswith("batch, decode: ")
    assert f.what.endswith("; prefill is right")


def test_nothing_is_found_where_all_is_well():
    assert diagnosis.finding("batch", "decode", verdicts(), SMALL) is None
