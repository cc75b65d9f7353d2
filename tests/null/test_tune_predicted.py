"""The judge that predicts: what it refuses, what it takes, and that a wrong source is never taken."""

from __future__ import annotations

import pytest

from dsv2_compile.autotune import host_check
from dsv2_compile.autotune.predict import bound
from dsv2_compile.autotune.predicted import TIE, PredictedJudge
from dsv2_compile.autotune.search import pairs
from dsv2_compile.autotune.trial import OK, REFUSED, WRONG, Trial
from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.pool import Pool
from dsv2_compile.kernels.gpu.kernel import KERNELS
from tests.tuning import H800, linear, norm, task


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    with Pool(1) as pool:
        yield PredictedJudge(H800, pool, BuildCache(tmp_path_factory.mktemp("cache")))


def trial(config, microseconds):
    return Trial(config, OK, microseconds)


def config(warps):
    return {"num_warps": warps, "num_stages": 1}


def test_candidates_are_compiled_checked_and_predicted(judge):
    one = task(linear(rows=2048, N=1024, K=2048))
    default = KERNELS["linear"].default(dict(one.call.dims), H800)
    too_large = {**default, "BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 256, "num_stages": 6}
    found = {pairs(t.config): t for t in judge.judge(one, [default, too_large])}
    good, refused = found[pairs(default)], found[pairs(too_large)]
    assert good.status == OK and good.microseconds >= bound(one.call, H800)
    assert good.facts["matrix"] == "HGMMA" and good.facts["prediction"]["microseconds"] > 0
    assert refused.status == REFUSED and "shared memory" in refused.reason and not refused.microseconds


def test_the_default_is_kept_unless_something_is_clearly_faster(judge):
    default = trial(config(4), 10.0)
    close, fast = trial(config(2), 10.0 / (1 + TIE / 2)), trial(config(8), 5.0)
    assert judge.confirm(task(norm()), [close, default], default).trial is default
    assert judge.confirm(task(norm()), [fast, close, default], default).trial is fast
    assert judge.confirm(task(norm()), [close, default], None).trial is close
    assert judge.confirm(task(norm()), [], None).trial is None


def test_ties_are_broken_by_a_fixed_order(judge):
    a, b = trial(config(1), 5.0), trial(config(2), 5.0 * (1 + TIE / 2))
    assert judge.confirm(task(norm()), [a, b], None).trial is a
    b = trial(config(1), 5.0 * (1 + TIE / 2))
    assert judge.confirm(task(norm()), [trial(config(2), 5.0), b], None).trial is b


def test_what_is_wrong_on_the_host_is_passed_over(judge, monkeypatch):
    """The fastest gives other numbers with this source: the next is taken, or none."""
    host_check._wrong.cache_clear()
    right = host_check.on_host

    def wrong(kernel, dims, config, sizes, dtype, tensors):
        right(kernel, dims, config, sizes, dtype, tensors)
        if config["num_warps"] in bad:
            tensors["out"][0, 0] += 1

    monkeypatch.setattr(host_check, "on_host", wrong)
    bad = {8}
    fast, slow = trial(config(8), 5.0), trial(config(4), 10.0)
    confirmed = judge.confirm(task(norm()), [fast, slow], None)
    assert confirmed.trial is slow and host_check.NAME in confirmed.checks
    (refuted,) = confirmed.refuted
    assert refuted.status == WRONG and refuted.config == fast.config and "out is off" in refuted.reason
    host_check._wrong.cache_clear()
    bad = {4, 8}
    assert judge.confirm(task(norm()), [fast, slow], None).trial is None
    host_check._wrong.cache_clear()
