"""The oracle is the reference, run as an engine runs it: prefill, decode, chunks, a long prefix; in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv2_compile.model import reference
from dsv2_compile.verify import oracle
from dsv2_compile.verify import plan as plans
from dsv2_compile.verify.plan import synthetic
from tests.small_engine import BATCH, POSITIONS, SMALL, Weights

SOURCE = Weights(SMALL)
PLAN = plans.make(SMALL, BATCH, POSITIONS)


@pytest.fixture(scope="module")
def exact():
    return oracle.run(SMALL, SOURCE, PLAN, torch.float64)


@torch.no_grad()
def stepwise(path: str) -> tuple[dict[int, np.ndarray], dict[int, list[np.ndarray]]]:
    """Logits by flat position, and rows by layer, of the reference called as the plan calls an engine."""
    weights = dict(reference.LazyWeights(SOURCE, SMALL, torch.float64, POSITIONS))
    layers = range(SMALL.num_hidden_layers)
    caches = {
        b: [torch.from_numpy(synthetic(SMALL, i, past)).double()[None] for i in layers]
        for b, past in enumerate(PLAN.past)
    }
    logits: dict[int, np.ndarray] = {}
    rows: dict[int, list[np.ndarray]] = {i: [np.zeros(SMALL.cache_dim)] * PLAN.offsets[-1] for i in layers}
    for call in PLAN.paths[path]:
        for b, start, stop in zip(call.sequences, call.start, call.stop, strict=True):
            known = [c[:, :start] for c in caches[b]]
            ids = torch.tensor([PLAN.tokens[b][start - PLAN.past[b] : stop - PLAN.past[b]]])
            args = torch.tensor([start]), torch.tensor([stop - start])
            out, new = reference.forward(SMALL, weights, ids, *args, known)
            caches[b] = [torch.cat(pair, 1) for pair in zip(known, new, strict=True)]
            at = PLAN.flat(b, start)
            logits[at + stop - start - 1] = out[0].numpy()
            for i in layers:
                rows[i][at : at + stop - start] = list(new[i][0].numpy())
    return logits, rows


@pytest.mark.parametrize("path", PLAN.paths)
def test_one_causal_pass_is_what_every_path_computes(path, exact):
    logits, rows = stepwise(path)
    for position, row in logits.items():
        assert np.abs(row - exact.logits[PLAN.probes.index(position)]).max() < 1e-12
    for i, found in rows.items():
        seen = [n for n, row in enumerate(found) if row.any()]
        assert len(seen) >= len(PLAN.paths[path])
        assert np.abs(np.stack([found[n] for n in seen]) - exact.rows[i, seen]).max() < 1e-12


def test_the_runs_of_a_sequence_do_not_see_each_other(monkeypatch, exact):
    """Run 0 is the same beside others as alone; without jitter all are."""
    alone = oracle.run(SMALL, SOURCE, PLAN, torch.float64)
    monkeypatch.setattr(oracle, "JITTERED", 0.0)
    same = oracle.noise(SMALL, SOURCE, PLAN, torch.float64, alone)
    assert same.rows.max() < 1e-11
    monkeypatch.setattr(oracle, "_jittered", lambda x, draw: 2 * x)
    loud = oracle.noise(SMALL, SOURCE, PLAN, torch.float64, alone)
    assert loud.rows[0].max() < 1e-11
    assert loud.rows[1:, 0].min(0).max() > 1e-3


def test_a_run_differs_from_the_next_as_rounding_does(exact):
    noise = oracle.noise(SMALL, SOURCE, PLAN, torch.float32, exact)
    rel = noise.rows[:, 0]
    assert rel.shape == (oracle.DRAWS, SMALL.num_hidden_layers, PLAN.offsets[-1])
    means = np.sqrt((rel**2).mean(-1))
    assert (means[1:] / means[0] < 1.5).all(), "one more rounding error is no other noise"
    assert (means[1:] / means[0] > 0.7).all()
    for i in range(SMALL.num_hidden_layers):
        size = np.sqrt((rel[:, i] ** 2).mean(0))  # some rows are off by more than others, in every run
        correlation = np.corrcoef(rel[:, i] / size)[np.triu_indices(oracle.DRAWS, 1)]
        assert correlation.max() < 0.5, "the runs are not copies"
    assert set(noise.router) == {1, 2, 3}
    assert all(not t.any() for t in noise.turned.values())


def test_jitter_moves_one_value_in_twelve_by_one_step():
    x = torch.randn(50, 400, generator=torch.Generator().manual_seed(1))
    moved = oracle._jittered(x, 3)
    step = torch.nextafter(x, torch.tensor(torch.inf)) - x
    part = ((moved - x).abs() > 0).double().mean()
    assert part == pytest.approx(1 / 12, rel=0.1)
    assert ((moved - x).abs() <= 1.01 * step).all()
    low = x.bfloat16()
    assert ((oracle._jittered(low, 3) != low).double().mean()) == pytest.approx(1 / 12, rel=0.1)


def test_weights_are_read_once_and_experts_one_at_a_time(monkeypatch):
    """Memory is bounded by the dense part of a layer: no tensor is read twice, none is kept."""
    source = Weights(SMALL)
    read: list[str] = []
    plain = source.tensor
    source.tensor = lambda name: (read.append(name), plain(name))[1]  # type: ignore[method-assign]
    oracle.run(SMALL, source, PLAN, torch.float64)
    assert sorted(set(read)) == sorted(read)
    order = [int(name.split(".")[2]) for name in read if name.startswith("model.layers.")]
    assert order == sorted(order)
