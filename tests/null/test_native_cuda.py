"""The GPU executor without a GPU: the order of its calls, its errors, and its results where the host interprets the
kernels. That a GPU does the same is not shown here."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dsv2_compile.backends.cuda import host
from dsv2_compile.errors import Dsv2Error, NumericError, ResourceError
from dsv2_compile.runtime.native.driver import OUT_OF_MEMORY
from dsv2_compile.runtime.native.launches import bucket
from dsv2_compile.runtime.native.pages import PagePool
from dsv2_compile.runtime.native.store import PagedStore
from dsv2_compile.runtime.sampling import Draw, Sampling, sample
from tests import native_plans
from tests.native_driver import InterpretingDriver, RecordingDriver
from tests.native_executor import SLOTS, call, opened

GREEDY = Draw(Sampling(), 0.0)


@pytest.fixture
def driver():
    return RecordingDriver()


@pytest.fixture
def toy(monkeypatch, tmp_path, driver):
    """(executor, plan) of the plan written by hand."""
    plan = native_plans.toy()
    executor, _ = opened(monkeypatch, plan, tmp_path / "engine", driver)
    with executor:
        yield executor, plan


def test_cache_rows_come_back(toy, driver):
    executor, _ = toy
    rng = np.random.default_rng()
    values = rng.standard_normal((2, 7, 8)).astype(np.float32)
    values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    at = np.array([40, 41, 42, 3, 0, 63, 62])
    executor.write_rows(at, values)
    copies = driver.count("copy_in")
    np.testing.assert_array_equal(executor.read_rows(at), values)
    np.testing.assert_array_equal(executor.read_rows(at[::-1]), values[:, ::-1])
    assert np.isnan(executor.read_rows(np.array([1, 43]))).all()
    assert executor.read_rows(np.array([], np.int64)).shape == (2, 0, 8)
    executor.write_rows(at[:3], values[:, :3])
    assert driver.count("copy_in") == copies + 2  # a layer each
    for wrong, of in ((np.array([64]), values[:, :1]), (np.array([-1]), values[:, :1]), (at, values[:1])):
        with pytest.raises(ValueError):
            executor.write_rows(wrong, of)
    assert driver.count("copy_in") == copies + 2


def test_a_step_is_captured_once_a_bucket(toy, driver):
    executor, plan = toy
    for batch in (2, 1, 2, 3, 4, 5, 6):
        name = plan.smallest("decode", rows=batch, batch=batch)
        before = len(driver.ran)
        found = executor.run(name, *call(plan, name, [3] * batch, [1] * batch))
        size = bucket(batch, plan.programs[name].limits["rows"])
        assert found["logits"].shape == (batch, 10)
        ran = driver.ran[before:]
        assert ran[0][:2] == (0, (size, 1, 1)) and int(ran[0][4][3]) == size
    assert driver.count("capture") == 4  # 2 and 1 of the first program, 4 and 6 of the second
    assert [c[1] for c in driver.calls if c[0] == "replay"] == [0, 2, 3]  # the others were the first of their bucket
    assert len(driver.ran) == 7 * 4 - 1  # each once; a step of one row has an empty grid


def test_padding_writes_and_attends_nothing(toy, driver):
    executor, plan = toy
    symbols, inputs = call(plan, "decode-6", [3, 16, 40], [1] * 3)
    executor.run("decode-6", symbols, inputs)
    first = next(r for r in driver.ran if r[0] == 0)
    tokens = driver.at(first[4][0], 16).view(np.int32)
    np.testing.assert_array_equal(tokens, [*inputs["tokens"], 0])
    positions = next(r for r in driver.ran if r[1] == (3, 1, 1))[4][0]  # of the launch over all rows but one
    np.testing.assert_array_equal(driver.at(positions, 16).view(np.int32), [3, 16, 40, -1])
    slots = next(r for r in driver.ran if r[0] == 1)[4][1]
    np.testing.assert_array_equal(driver.at(slots, 16).view(np.int32), [*inputs["slots"], -1])
    base = next(a for a, b in driver.blocks.items() if len(b) == executor.needs.inputs)
    pages = driver.at(base + 4 * 256, 64).view(np.int32).reshape(4, 4)
    np.testing.assert_array_equal(pages[:3], inputs["page_table"])
    assert not pages[3].any()


def test_launches_have_scratch_shared_memory_and_nulls(toy, driver):
    executor, plan = toy
    symbols, inputs = call(plan, "prefill", [0, 0], [5, 1])
    executor.run("prefill", symbols, inputs)
    assert [r[:4] for r in driver.ran] == [
        (0, (6, 1, 1), 32, 0),
        (1, (2, 2, 1), 128, 70_000),
        (0, (5, 1, 1), 32, 0),
        (2, (2, 1, 1), 256, 40_000),
    ]
    for kernel, *_, args in driver.ran:
        scratch, profile = args[-2:]
        assert profile == 0 and bool(scratch) == (kernel == 1)
        if scratch:
            driver.at(scratch, 2 * 2 * 384)
    assert driver.ran[1][4][3:6] == (0, 6, 7)
    cache = next(a for a, b in driver.blocks.items() if len(b) == executor.needs.cache)
    assert driver.ran[1][4][2] == cache + SLOTS * 16  # its second layer


def test_a_grid_without_blocks_is_not_launched(toy, driver):
    executor, plan = toy
    executor.run("prefill", *call(plan, "prefill", [0], [1]))
    assert [r[0] for r in driver.ran] == [0, 1, 2]


def test_without_graphs_nothing_is_captured_or_padded(monkeypatch, tmp_path, driver):
    plan = native_plans.toy()
    executor, _ = opened(monkeypatch, plan, tmp_path, driver, graphs=False)
    with executor:
        executor.run("decode-6", *call(plan, "decode-6", [3] * 3, [1] * 3))
        assert not driver.count("capture") and driver.ran[0][1] == (3, 1, 1)


def test_a_step_that_depends_on_the_lengths_is_launched_anew(toy, driver):
    executor, plan = toy
    executor.run("decode-deep", *call(plan, "decode-deep", [3, 20, 40], [1] * 3))
    assert not driver.count("capture") and driver.ran[-1][1] == (-(-66 // 16), 1, 1)


def test_inputs_beyond_the_limits_or_of_other_shapes_are_refused(toy, driver):
    executor, plan = toy
    symbols, inputs = call(plan, "decode-2", [3, 5], [1, 1])
    narrow = {**inputs, "page_table": inputs["page_table"][:, :3]}
    for asked, given, why in (
        (*call(plan, "decode-2", [3] * 3, [1] * 3), "limits"),
        ({**symbols, "context": 129}, inputs, "limits"),
        (symbols, narrow, "page_table is"),
        ({**symbols, "rows": 1}, inputs, "tokens is"),
    ):
        with pytest.raises(ValueError, match=why):
            executor.run("decode-2", asked, given)
    with pytest.raises(KeyError):
        executor.run("decode-2", symbols, {n: v for n, v in inputs.items() if n != "slots"})
    assert not driver.ran and not driver.count("capture")


def test_what_no_kernel_writes_is_nan_and_no_store_takes_it(toy, driver):
    executor, plan = toy
    found = executor.run("prefill", *call(plan, "prefill", [0, 0], [5, 1]))
    assert np.isnan(found["logits"]).all()
    assert not np.shares_memory(found["logits"], executor._host)
    store = PagedStore(plan, executor, PagePool(4, 16), 2)
    with pytest.raises(NumericError):
        store.append("prefill", np.ones((1, 3), np.int64), np.array([3]), np.array([0]), np.array([0]))


def test_only_the_outputs_that_are_wanted_are_copied(toy, driver):
    executor, plan = toy
    asked = call(plan, "decode-6", [3] * 3, [1] * 3)
    found = executor.run("decode-6", *asked, ("next_tokens",))
    assert found["next_tokens"].tolist() == [-1] * 3 and list(found) == ["next_tokens"]
    assert [c[2] for c in driver.calls if c[0] == "copy_out"] == [3 * 4]
    assert list(executor.run("decode-6", *asked)) == ["logits", "next_tokens"]
    store = PagedStore(plan, executor, PagePool(4, 16), 2)
    with pytest.raises(NumericError):
        store.choose("prefill", np.ones((1, 3), np.int64), np.array([3]), np.array([0]), np.array([0]), [GREEDY])


def test_a_fault_on_the_way_is_told_and_can_be_closed(toy, driver):
    executor, plan = toy
    driver.fails["sync"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(Dsv2Error, match=r"could not run decode-2: CUDA_ERROR_ILLEGAL_ADDRESS") as e:
        executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    assert e.value.exit_code == 1
    executor.close()
    assert driver.closed


def test_a_capture_that_fails_is_tried_again(toy, driver):
    executor, plan = toy
    driver.fails["launch"] = OUT_OF_MEMORY
    with pytest.raises(ResourceError):
        executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    del driver.fails["launch"]
    executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    executor.run("decode-2", *call(plan, "decode-2", [3], [1]))
    assert (driver.count("capture"), driver.count("replay")) == (1, 1)


def test_time_and_profile_come_from_events_of_the_gpu(toy, driver):
    executor, plan = toy
    asked = call(plan, "decode-6", [3] * 4, [1] * 4)
    assert executor.time("decode-6", *asked, repeats=5) == [4.0] * 5
    assert driver.count("capture") == 1 and driver.count("replay") == 6  # one of the two runs before, and all five
    found = executor.profile("decode-6", *asked)
    assert found == [(x.what, 1.0) for x in plan.programs["decode-6"].launches]
    assert driver.count("discard") == 1
    prefill = call(plan, "prefill", [0], [1])
    assert executor.time("prefill", *prefill, repeats=2) == [3.0] * 2
    assert [what for what, _ in executor.profile("prefill", *prefill)] == [
        "embedding",
        "cache write, layer 1",
        "logits",
    ]


# results, with the kernels interpreted


def test_the_host_computes_the_same_through_it(monkeypatch, tmp_path):
    """Prompts, more of two of them, and steps of three sequences that are padded to four, first launched and then
    replayed: logits and cache rows equal those of the host's own executor, which pads nothing. Tokens that are chosen
    on the way are those of its logits."""
    plan, config = native_plans.tiny("bf16")
    driver = InterpretingDriver(plan)
    executor, weights = opened(monkeypatch, plan, tmp_path, driver, slots=6 * 64)
    reference = host.HostExecutor(plan, weights, 6 * 64)
    ours, theirs = (PagedStore(plan, e, PagePool(6, 64), 3) for e in (executor, reference))
    rng, past = np.random.default_rng(), np.zeros(3, np.int64)
    ran = []
    for phase, counts, who in (
        ("prefill", [11, 1, 4], [0, 2, 1]),  # two calls: a program takes two sequences
        ("extend", [9, 4], [2, 0]),
        ("decode", [1, 1, 1], [0, 1, 2]),
        ("decode", [1, 1, 1], [2, 1, 0]),
    ):
        at, new = np.array(who), np.array(counts)
        ids = rng.integers(0, config.vocab_size, (len(who), max(counts)))
        found, expected = (s.append(phase, ids, new, at, past[at]) for s in (ours, theirs))
        np.testing.assert_array_equal(found, expected)
        past[at] += new
        ran.append(len(driver.ran))
    assert (driver.count("capture"), driver.count("replay")) == (1, 1)
    assert ran[3] - ran[2] == ran[2] - ran[1]
    at, ones, draws = np.array([2, 0, 1]), np.ones(3, np.int64), [GREEDY, Draw(Sampling(3.0, 50, 0.95), 0.37), GREEDY]
    logits = theirs.append("decode", ids[:, :1], ones, at, past[at])
    tokens = ours.choose("decode", ids[:, :1], ones, at, past[at], draws)
    assert tokens.tolist() == [sample(row, draw) for row, draw in zip(logits, draws, strict=True)]
    assert driver.count("replay") == 2 and tokens[1] != logits[1].argmax()
    past += 1
    for slot in range(3):
        stored = ours.rows(slot, int(past[slot]))
        assert np.isfinite(stored).all()
        np.testing.assert_array_equal(stored, theirs.rows(slot, int(past[slot])))
    executor.close()
