"""A wrong kernel is never taken: some of those that tests/slow/bench_planted_kernels.py plants, of every kernel."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dsv2_compile.kernels.gpu.check import Violation, always, check, in_any_order
from dsv2_compile.kernels.gpu.kernel import KERNELS
from tests.planted_edits.core import TILE, edit
from tests.planted_kernels import ACCEPTED, RAISED, cases, judged, planted, plants, verdict

SLOW = ("sample",)
"""Kernels that take the interpreter long; others share their source."""
EACH = 3


def few():
    """`EACH` plants of a kernel, of the kinds that the kernels before have least of, under that one of its
    configurations in which most are wrong."""
    every, chosen = plants(), Counter[str]()
    for kernel in sorted({p.call.kernel for p in every} - {*SLOW}):
        mine = [p for p in every if p.call.kernel == kernel]
        under = {(p.call, p.config): [q for q in mine if (q.call, q.config) == (p.call, p.config)] for p in mine}
        kinds = {p.edit.kind: p for p in max(under.values(), key=len)}
        least = sorted(kinds, key=chosen.__getitem__)[:EACH]
        chosen.update(least)
        yield [kinds[kind] for kind in least]


FEW = list(few())


@pytest.mark.parametrize("wrong", FEW, ids=lambda found: found[0].call.kernel)
def test_a_wrong_kernel_is_refused_where_the_right_one_is_accepted(wrong):
    call, config = wrong[0].call, dict(wrong[0].config)
    how, number, why = verdict(KERNELS[call.kernel], call, config)
    assert how == ACCEPTED, (number, why)
    for plant in wrong:
        how, number, why = judged(plant)
        assert how not in (ACCEPTED, RAISED), (plant.name, number, why)


def test_there_are_enough_of_every_kernel_and_kind():
    every = plants(2)
    assert len(every) >= 500 and len({p.name for p in every}) == len(every)
    assert {p.call.kernel for p in every} == set(KERNELS)
    assert len({p.edit.kind for p in every}) == len({p.edit.kind for found in FEW for p in found}) == 12
    assert sum(map(len, FEW)) >= 60


def test_a_source_that_was_written_anew_without_a_change_is_accepted():
    plant = next(p for group in FEW for p in group if p.call.kernel == "rms_norm")
    same = edit("rms_norm", "rms_norm", TILE, "none", "row = tl", "row = tl")
    assert verdict(planted("rms_norm", same), plant.call, dict(plant.config))[0] == ACCEPTED


def test_an_input_that_changes_and_an_order_that_matters_are_violations():
    plant = next(p for group in FEW for p in group if p.call.kernel == "embedding")
    config = dict(plant.config)
    (case, *_) = cases(plant.call, plant.config)
    into = edit("embedding", "embedding", TILE, "stores into the table", "tl.store(out +", "tl.store(table +")
    with pytest.raises(Violation, match="table changed, which is no output"):
        check(replace(case, kernel=planted("embedding", into)), "bf16", config, in_any_order)
    last = edit("embedding", "embedding", TILE, "one row for all", "tl.store(out + row * N", "tl.store(out + 0 * N")
    with pytest.raises(Violation, match="out depends on the order of programs"):
        check(replace(case, kernel=planted("embedding", last)), "bf16", config, in_any_order)


def test_an_output_of_another_shape_is_an_error_of_the_case():
    plant = next(p for group in FEW for p in group if p.call.kernel == "embedding")
    case = replace(cases(plant.call, plant.config)[0], outputs=always(out=(1, 1)))
    with pytest.raises(ValueError, match="the case says otherwise"):
        check(case, "bf16", dict(plant.config), lambda *args: None)
