"""Pages of a native engine's cache: who holds which, what is refused, and what a failed call leaves behind."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2_compile.errors import NumericError, ResourceError, UsageError
from dsv2_compile.plan.pack import pack, pad
from dsv2_compile.plan.plan import Buffer, Plan, PlanProgram
from dsv2_compile.runtime.native.pages import PagePool, PageTables
from dsv2_compile.runtime.native.store import PagedStore
from dsv2_compile.runtime.sampling import Draw, Sampling
from dsv2_compile.runtime.session import Session

PAGE = 4
INPUTS = (
    "tokens", "positions", "slots", "sequence", "page_table", "query_start", "context_start", "context_slots",
    "last_rows", "temperature", "top_p", "top_k", "uniform",
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=40))
def test_no_page_has_two_holders_and_none_is_lost(steps):
    """Sequences grow, shrink and end at random; a refusal changes nothing."""
    pool = PagePool(20, PAGE)
    tables = [PageTables(pool, 5, 12), PageTables(pool, 5, 12)]
    held = {(t, s): 0 for t in range(2) for s in range(5)}
    for i, (slot, positions) in enumerate(steps):
        which = i % 2
        need = max(-(-positions // PAGE) - held[which, slot], 0)
        if i % 5 == 4:
            tables[which].release([slot], [positions])
            held[which, slot] = min(held[which, slot], -(-positions // PAGE))
        elif need > pool.free:
            with pytest.raises(ResourceError, match=f"{need} are needed"):
                tables[which].reserve([slot], [positions])
        else:
            tables[which].reserve([slot], [positions])
            held[which, slot] += need
        pages = [p for (t, s), n in held.items() for p in tables[t].tables[s, :n].tolist()]
        assert len(set(pages)) == len(pages) == 20 - pool.free and all(0 <= p < 20 for p in pages)


def test_several_slots_get_all_or_nothing():
    pool = PagePool(3, PAGE)
    tables = PageTables(pool, 2, 4)
    with pytest.raises(ResourceError, match="3 free pages of 4 tokens, 4 are needed"):
        tables.reserve([0, 1], [8, 8])
    tables.reserve([0, 1], [4, 8])
    assert pool.free == 0 and sorted(tables.tables[0, :1].tolist() + tables.tables[1, :2].tolist()) == [0, 1, 2]
    assert tables.rows(1, 6).tolist() == [p * PAGE + o for p in tables.tables[1, :2] for o in range(PAGE)][:6]


def program(phase: str, rows: int, batch: int, context: int) -> PlanProgram:
    floats = {"temperature", "top_p", "uniform"}
    buffers = {n: Buffer("fp32" if n in floats else "i32", (), "input") for n in INPUTS}
    return PlanProgram(phase, {"rows": rows, "batch": batch, "context": context}, buffers, (), 0)


PLAN = Plan("h800", "sm_90", "bf16", PAGE, 12, (), {
    "prefill": program("prefill", 8, 3, 16), "extend": program("extend", 8, 3, 144),
    "decode-1": program("decode", 1, 1, 48), "decode-3": program("decode", 3, 3, 144),
})  # fmt: skip


class Echo:
    """An executor whose logits are the sum of all tokens that the cache holds for a sequence, and whose next token
    is that and the thousands of its random number; it has one layer."""

    def __init__(self, slots: int) -> None:
        self.cache, self.calls, self.spoil, self.asked = np.full(slots, np.nan), [], False, []

    def run(self, name, symbols, inputs, outputs):
        self.asked.append(outputs)
        self.calls.append((name, symbols["rows"], symbols["batch"], symbols["context"]))
        assert set(inputs) == set(INPUTS)
        self.cache[inputs["slots"]] = inputs["tokens"]
        out = []
        for b in range(symbols["batch"]):
            at = slice(*inputs["context_start"][b : b + 2])
            assert inputs["positions"][inputs["last_rows"][b]] == at.stop - at.start - 1
            assert (inputs["sequence"][slice(*inputs["query_start"][b : b + 2])] == b).all()
            out.append(self.cache[inputs["context_slots"][at]].sum())
        tokens = np.array(out, np.int32) + (1000 * inputs["uniform"]).astype(np.int32)
        made = {
            "logits": np.array(out, np.float32)[:, None] * (np.nan if self.spoil else 1),
            "next_tokens": np.full_like(tokens, -1) if self.spoil else tokens,
        }
        return {name: made[name] for name in outputs}

    def write_rows(self, at, rows):
        self.cache[at] = rows[0, :, 0]

    def read_rows(self, at):
        return self.cache[at][None, :, None].astype(np.float32)

    def close(self):
        pass


def store(pages: int = 36) -> tuple[PagedStore, Echo, PagePool]:
    echo, pool = Echo(pages * PAGE), PagePool(pages, PAGE)
    return PagedStore(PLAN, echo, pool, 3), echo, pool


def ids(*rows) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(r) for r in rows])
    out = np.zeros((len(rows), counts.max()), np.int64)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out, counts


def test_calls_are_packed_and_cut_to_what_a_program_holds():
    """19 new tokens in calls of at most 8, then a step; every sum is over the whole sequence, wherever it lies."""
    s, echo, _ = store()
    rows = [list(range(1, 12)), [100, 200], [7, 7, 7, 7, 7, 7]]
    tokens, counts = ids(*rows)
    got = s.append("prefill", tokens, counts, np.array([2, 0, 1]), np.zeros(3, np.int64))
    assert got[:, 0].tolist() == [sum(r) for r in rows]
    assert [c[1] for c in echo.calls] == [8, 8, 3]
    assert [c[0] for c in echo.calls] == ["prefill", "prefill", "prefill"]
    more, ones = ids([5], [6], [8])
    got = s.append("decode", more, ones, np.array([1, 2, 0]), np.array([6, 11, 2]))
    assert got[:, 0].tolist() == [47, 72, 308] and echo.calls[-1][:3] == ("decode-3", 3, 3)
    s.append("decode", *ids([1]), np.array([0]), np.array([3]))
    assert echo.calls[-1][0] == "decode-1"


def test_what_prefill_cannot_expand_is_extended():
    s, echo, _ = store()
    tokens, counts = ids(list(range(30)))
    assert s.append("prefill", tokens, counts, np.array([0]), np.zeros(1, np.int64))[0, 0] == sum(range(30))
    assert [c[0] for c in echo.calls] == ["prefill", "prefill", "extend", "extend"]


def test_a_failed_call_gives_its_pages_back_and_adds_nothing():
    s, echo, pool = store()
    s.append("prefill", *ids([1, 2, 3]), np.array([1]), np.zeros(1, np.int64))
    before = pool.free
    echo.spoil = True
    with pytest.raises(NumericError, match=r"slots \[1\]"):
        s.append("prefill", *ids([4] * 9), np.array([1]), np.array([3]))
    assert pool.free == before
    echo.spoil = False
    assert s.append("decode", *ids([10]), np.array([1]), np.array([3]))[0, 0] == 16


def test_next_tokens_come_by_each_sequences_own_draw_and_without_the_logits():
    """Cut into calls, in another order than the slots'; rows of a call that failed are given back."""
    s, echo, pool = store()
    tokens, counts = ids(list(range(1, 12)), [100, 200], [7] * 6)
    draws = [Draw(Sampling(1.0), number) for number in (0.001, 0.25, 0.5)]
    got = s.choose("prefill", tokens, counts, np.array([2, 0, 1]), np.zeros(3, np.int64), draws)
    assert got.tolist() == [66 + 1, 300 + 250, 42 + 500]
    assert set(echo.asked) == {("next_tokens",)}
    before, echo.spoil = pool.free, True
    with pytest.raises(NumericError, match=r"slots \[1\]"):
        s.choose("decode", *ids([4]), np.array([1]), np.array([6]), draws[:1])
    assert pool.free == before


def test_a_session_gives_tokens_for_draws():
    s, _, _ = store()
    config = SimpleNamespace(vocab_size=300, num_hidden_layers=1, cache_dim=1)
    with Session(SimpleNamespace(config=config), 3, 40, s) as session:  # type: ignore[arg-type]
        draws = [Draw(Sampling(1.0), number) for number in (0.25, 0.001)]
        assert session.start([[1] * 9, [2] * 9], [9, 2], draws, [0, 2]).tolist() == [259, 5]
        assert session.step([7, 8], draws[::-1], [2, 0]).tolist() == [12, 267]
        assert session.resume([[3, 0], [4, 5]], [1, 2], draws, [2, 0]).tolist() == [264, 27]
        assert (session.length(0), session.length(2)) == (12, 4)
        for refused in (
            lambda: session.step([7, 8], draws[:1], [2, 0]),
            lambda: session.start([[1]], [1], draws, [2]),
            lambda: session.resume([[1]], [1], draws, [2]),
        ):
            with pytest.raises(UsageError, match="draws for"):
                refused()
        for uniform in (1.0, -0.1, float("nan")):
            with pytest.raises(UsageError, match="at least 0 and below 1"):
                session.step([7], [Draw(Sampling(1.0), uniform)], [2])
        with pytest.raises(UsageError, match="Slot 1 holds no sequence"):
            session.resume([[1]], [1], draws[:1], [1])
        with pytest.raises(UsageError, match="the session holds 40"):
            session.resume([[1] * 29], [29], draws[:1], [0])
        assert (session.length(0), session.length(2)) == (12, 4)


def test_a_restored_batch_that_does_not_fit_holds_no_page():
    s, _, pool = store(pages=3)
    config = SimpleNamespace(vocab_size=300, num_hidden_layers=1, cache_dim=1)
    with Session(SimpleNamespace(config=config), 3, 40, s) as session:  # type: ignore[arg-type]
        with pytest.raises(ResourceError, match="2 are needed"):
            session.restore(np.ones((1, 2, 8, 1)), [8, 8], [0, 1])
        assert pool.free == 3
        with pytest.raises(UsageError, match="Slot 0 holds no sequence"):
            session.length(0)


def test_a_session_that_is_closed_gives_its_pages_back():
    s, _, pool = store()
    config = SimpleNamespace(vocab_size=300, num_hidden_layers=1, cache_dim=1)
    with Session(SimpleNamespace(config=config), 3, 40, s) as session:  # type: ignore[arg-type]
        session.prefill([[1] * 9, [2] * 9], [9, 2], [0, 2])
        assert pool.free == pool.count - 4
    assert pool.free == pool.count


def test_threads_never_get_one_page_twice():
    """Four sessions take and give at once, with threads switched as often as can be."""
    pool, twice, before = PagePool(41, PAGE), [], sys.getswitchinterval()
    out, lock = set(), threading.Lock()

    def work():
        for _ in range(2000):
            try:
                pages = pool.take(3)
            except ResourceError:
                continue
            with lock:
                twice.extend(p for p in pages if p in out or len(pages) != 3)
                out.update(pages)
            with lock:
                out.difference_update(pages)
            pool.give(pages)

    threads = [threading.Thread(target=work) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(before)
    assert twice == [] and pool.free == 41


def test_a_full_cache_is_refused_before_anything_runs():
    s, echo, pool = store(pages=2)
    s.append("prefill", *ids([1] * 5), np.array([0]), np.zeros(1, np.int64))
    calls = len(echo.calls)
    with pytest.raises(ResourceError, match="0 free pages of 4 tokens, 1 are needed"):
        s.append("prefill", *ids([1]), np.array([1]), np.zeros(1, np.int64))
    assert len(echo.calls) == calls
    s.release(np.array([0]), True)
    assert pool.free == 2


def test_rows_come_back_as_they_were_put():
    s, _, _ = store()
    rows = np.arange(7, dtype=np.float32)[None, :, None]
    s.put(2, rows)
    assert np.array_equal(s.rows(2, 7), rows)
    assert s.append("decode", *ids([100]), np.array([2]), np.array([7]))[0, 0] == 121


def test_padding_rows_write_and_attend_nothing():
    _, inputs = pack(PLAN.programs["decode-3"], PAGE, [np.array([9])], [2], np.array([[3] + [0] * 11]))
    decode = {n: inputs[n] for n in ("tokens", "positions", "slots", "sequence", "page_table")}
    padded = pad(decode, 4)
    assert padded["positions"].tolist() == [2, -1, -1, -1] and padded["slots"].tolist() == [14, -1, -1, -1]
    assert padded["page_table"].shape == (4, 12) and padded["tokens"].tolist() == [9, 0, 0, 0]


def test_without_a_number_the_cache_takes_what_is_free(monkeypatch):
    """As many pages as fit beside the rest, never more than the engine can use, at least one."""
    from dsv2_compile.runtime.native import model

    class Free:
        def memory(self):
            return self.free, 0

        def close(self):
            pass

    driver = Free()
    monkeypatch.setattr("dsv2_compile.runtime.native.cuda_core.open_driver", lambda device: driver)
    monkeypatch.setattr(model.memory, "weight_layout", lambda *a: None)
    monkeypatch.setattr(model.memory, "needs", lambda *a: SimpleNamespace(total=500))
    monkeypatch.setattr(model, "scratch_bytes", lambda *a: 0)
    monkeypatch.setattr(model.memory, "cache_buffer", lambda plan: SimpleNamespace(nbytes=lambda sizes: 10))
    manifest = SimpleNamespace(max_batch_size=2, max_seq_len=48, weights={})
    for free, expected in ((0, 4), (900, 32), (10**6, 96)):
        driver.free = free
        assert model._fitting(PLAN, manifest) == expected
