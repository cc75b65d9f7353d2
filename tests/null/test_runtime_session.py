"""Sessions against a numpy oracle: chunks, ragged batches, slots, growth; and everything callers do wrong."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dsv2_compile.errors import Dsv2Error, NumericError, ResourceError, UsageError
from dsv2_compile.runtime import Engine, cache, contiguous, session
from tests import toy_engine
from tests.toy_engine import CONFIG, LAYERS, MAX_BATCH, MAX_SEQ, NAN, VOCAB, WIDTH

SOURCE = toy_engine.ToySource()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines") / "toy"
    toy_engine.build(out)
    with Engine.load(out, threads=1) as e:
        yield e


def prompt(rng: np.random.Generator, n: int) -> list[int]:
    return rng.integers(NAN + 1, VOCAB, n).tolist()


def padded(rows: list[list[int]], pad: int = -1) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(rows), max(map(len, rows))), pad, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(r) for r in rows], np.int32)


def assert_logits(logits: np.ndarray, rows: list[list[int]]) -> None:
    assert logits.dtype == np.float32
    assert logits.shape == (len(rows), VOCAB)
    for got, ids in zip(logits, rows, strict=True):
        expected = toy_engine.oracle(SOURCE, ids)
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


class Spy:
    """The engine, recording the shapes of every program call."""

    def __init__(self, engine: Engine, phase: str = "") -> None:
        self.engine, self.phase = engine, phase
        self.config, self.max_seq_len = engine.config, engine.max_seq_len
        self.calls: list[tuple[str, int, int, int]] = []

    def program(self, phase: str):
        spy = Spy(self.engine, phase)
        spy.calls = self.calls
        return spy

    def run(self, tokens, past, lengths, caches):
        assert lengths.min() >= 1
        assert all(c.flags.c_contiguous and c.dtype == np.float32 for c in caches)
        self.calls.append((self.phase, *tokens.shape, caches[0].shape[1]))
        return self.engine.program(self.phase).run(tokens, past, lengths, caches)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 512])
@pytest.mark.parametrize("lengths", [[1], [40], [5, 40, 1], [1, 2, 3, 4, 5, 33]], ids=str)
def test_prefill_in_chunks_then_decode(engine, monkeypatch, chunk, lengths):
    monkeypatch.setattr(contiguous, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(cache, "GRANULE", 8)
    rng = np.random.default_rng(sum(lengths) * chunk)
    rows = [prompt(rng, n) for n in lengths]
    with engine.session(len(rows), 64) as s:
        assert_logits(s.prefill(*padded(rows)), rows)
        for _ in range(12):
            tokens = prompt(rng, len(rows))
            logits = s.decode(tokens)
            rows = [[*r, t] for r, t in zip(rows, tokens, strict=True)]
            assert_logits(logits, rows)
        assert [s.length(i) for i in range(len(rows))] == [len(r) for r in rows]


def test_random_traffic_over_slots(engine, monkeypatch):
    """400 random calls on 6 slots, any subset in any order, against the oracle at every call."""
    monkeypatch.setattr(contiguous, "CHUNK_TOKENS", 5)
    monkeypatch.setattr(cache, "GRANULE", 4)
    rng = np.random.default_rng(5)
    live: dict[int, list[int]] = {}
    kinds = {"prefill": 0, "extend": 0, "decode": 0, "free": 0}
    with engine.session(MAX_BATCH, 90) as s:
        while sum(kinds.values()) < 400:
            kind = rng.choice(list(kinds), p=[0.2, 0.3, 0.4, 0.1])
            pool = list(range(MAX_BATCH)) if kind == "prefill" else [k for k, v in live.items() if len(v) < 80]
            if not pool:
                live = {k: v for k, v in live.items() if len(v) < 80}
                continue
            slots = rng.permutation(pool)[: rng.integers(1, len(pool) + 1)].tolist()
            kinds[kind] += 1
            if kind == "free":
                s.free(slots)
                for slot in slots:
                    del live[slot]
                continue
            fresh = [prompt(rng, 1 if kind == "decode" else int(rng.integers(1, 10))) for _ in slots]
            old = [[] if kind == "prefill" else live[slot] for slot in slots]
            if kind == "decode":
                logits = s.decode([f[0] for f in fresh], slots)
            else:
                logits = getattr(s, kind)(*padded(fresh), slots)
            live |= {slot: [*a, *b] for slot, a, b in zip(slots, old, fresh, strict=True)}
            assert_logits(logits, [live[slot] for slot in slots])
    assert min(kinds.values()) > 10


def test_one_slot_binds_exactly_its_past_and_copies_nothing(engine):
    spy = Spy(engine)
    s = session.Session(spy, 1, 300)  # type: ignore[arg-type]
    s.prefill([list(range(20, 30))], [10])
    address = s._store._cache._arrays[0].ctypes.data
    for _ in range(3):
        s.decode([20])
    assert [c[3] for c in spy.calls] == [0, 10, 11, 12]
    assert s._store._cache._arrays[0].ctypes.data == address


def test_consecutive_slots_share_a_call_and_gaps_split_it(engine):
    spy = Spy(engine)
    s = session.Session(spy, 6, 300)  # type: ignore[arg-type]
    s.prefill([[20]] * 5, [1] * 5, [5, 3, 0, 4, 1])
    assert [c[1] for c in spy.calls] == [2, 3]
    spy.calls.clear()
    s.decode([20, 21], [4, 0])
    assert [c[:2] for c in spy.calls] == [("decode", 1), ("decode", 1)]


def test_capacity_grows_with_the_longest_and_is_given_back(engine):
    with engine.session(2, MAX_SEQ) as s:
        s.prefill(np.full((2, 3), 20), [3, 3])
        assert s._store._cache.capacity == 256
        s.extend(np.full((1, 300), 20), [300], [1])
        assert s._store._cache.capacity == 512
        s.extend(np.full((1, MAX_SEQ - 303), 20), [MAX_SEQ - 303], [1])
        assert s._store._cache.capacity == MAX_SEQ
        s.free()
        assert s._store._cache.capacity == 0


def test_chunks_stay_within_the_score_budget(engine, monkeypatch):
    spy = Spy(engine)
    budget = 1 << 20
    monkeypatch.setattr(contiguous, "SCORE_BYTES", budget)
    with session.Session(spy, 2, MAX_SEQ) as s:  # type: ignore[arg-type]
        s.prefill(np.full((2, 1500), 20), [1500, 700])
    assert len({c[2] for c in spy.calls}) > 3
    for _, batch, tokens, context in spy.calls:
        assert batch * CONFIG.num_attention_heads * tokens * (context + tokens) * 4 <= budget


def test_padding_never_passes_the_last_position(engine):
    """Row 0 ends at the engine's last position; row 1 starts long before. Gather would fail past the table."""
    rng = np.random.default_rng(2)
    rows = [prompt(rng, MAX_SEQ - 3), prompt(rng, 4)]
    with engine.session(2) as s:
        s.prefill(*padded(rows))
        more = [prompt(rng, 3), prompt(rng, 50)]
        assert_logits(s.extend(*padded(more)), [a + b for a, b in zip(rows, more, strict=True)])


def test_a_finished_row_keeps_its_logits_while_others_go_on(engine, monkeypatch):
    monkeypatch.setattr(contiguous, "CHUNK_TOKENS", 4)
    rng = np.random.default_rng(3)
    rows = [prompt(rng, n) for n in (3, 19, 4, 8)]
    spy = Spy(engine)
    s = session.Session(spy, 4, 64)  # type: ignore[arg-type]
    assert_logits(s.prefill(*padded(rows)), rows)
    assert [c[1] for c in spy.calls] == [4, 1, 1, 1, 1, 1]  # then slots 1 and 3, then 1 alone


def test_sessions_of_one_engine_do_not_share_sequences(engine):
    with engine.session(1, 50) as a, engine.session(1, 50) as b:
        a.prefill([[20, 21]], [2])
        b.prefill([[30]], [1])
        assert_logits(a.decode([22]), [[20, 21, 22]])
        assert_logits(b.decode([31]), [[30, 31]])


def test_prefill_starts_a_live_slot_over(engine):
    with engine.session(2, 50) as s:
        s.prefill([[20, 21, 22], [30, 31, 32]], [3, 3])
        assert_logits(s.prefill([[40]], [1], [0]), [[40]])
        assert_logits(s.decode([41, 33]), [[40, 41], [30, 31, 32, 33]])


# Case 61: what callers do wrong. The sequences there before go on as if nothing had happened.

A, B = [20, 21, 22], [30, 31]

MISTAKES = {
    "token too large": lambda s: s.prefill([[VOCAB]], [1], [2]),
    "token negative": lambda s: s.decode([-1], [0]),
    "token far outside int32": lambda s: s.decode([2**63], [0]),
    "float tokens": lambda s: s.decode([1.5], [0]),
    "bool tokens": lambda s: s.decode([True], [0]),
    "text tokens": lambda s: s.prefill([["a"]], [1], [2]),
    "ragged tokens": lambda s: s.prefill([[20], [20, 21]], [1, 2], [2, 3]),
    "no sequence": lambda s: s.prefill([], [], []),
    "empty prompt": lambda s: s.prefill([[20]], [0], [2]),
    "no token columns": lambda s: s.prefill(np.zeros((1, 0), np.int32), [0], [2]),
    "negative length": lambda s: s.extend([[20]], [-1], [0]),
    "length past the columns": lambda s: s.extend([[20]], [2], [0]),
    "too few lengths": lambda s: s.prefill([[20], [20]], [1], [2, 3]),
    "wrong dims": lambda s: s.decode([[20, 20]], [0]),
    "prompt too long": lambda s: s.prefill(np.full((1, 101), 20), [101], [2]),
    "cache full": lambda s: s.extend(np.full((1, 98), 20), [98], [0]),
    "batch too large": lambda s: s.prefill(np.full((5, 1), 20), [1] * 5),
    "slot too large": lambda s: s.prefill([[20]], [1], [4]),
    "slot negative": lambda s: s.decode([20], [-1]),
    "slot twice": lambda s: s.decode([20, 20], [0, 0]),
    "slot count": lambda s: s.decode([20, 20], [0]),
    "slot type": lambda s: s.decode([20], [0.0]),
    "decode before prefill": lambda s: s.decode([20], [2]),
    "extend before prefill": lambda s: s.extend([[20]], [1], [3]),
    "one live slot, one not": lambda s: s.decode([20, 20], [0, 2]),
    "default slots include a free one": lambda s: s.decode([20, 20, 20]),
    "free of a free slot": lambda s: s.free([2]),
    "free twice in one call": lambda s: s.free([0, 0]),
    "length of a free slot": lambda s: s.length(3),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_a_usage_error_and_changes_nothing(engine, mistake):
    with engine.session(4, 100) as s:
        s.prefill(*padded([A, B]))
        before = [a.copy() for a in s._store._cache._arrays]
        with pytest.raises(UsageError) as e:
            mistake(s)
        assert "\n" not in e.value.cause + e.value.remedy
        assert all(np.array_equal(x, y) for x, y in zip(before, s._store._cache._arrays, strict=True))
        assert_logits(s.decode([23, 32]), [[*A, 23], [*B, 32]])


@pytest.mark.parametrize(
    ("batch", "tokens"), [(0, 10), (-1, 10), (MAX_BATCH + 1, 10), (1, 0), (1, MAX_SEQ + 1)], ids=str
)
def test_sessions_beyond_the_engine_are_refused(engine, batch, tokens):
    with pytest.raises(UsageError, match=r"takes 1\.\."):
        engine.session(batch, tokens)


@pytest.mark.parametrize("where", ["decode", "extend", "late chunk"])
def test_nan_is_a_numeric_error_and_other_sequences_go_on(engine, monkeypatch, where):
    monkeypatch.setattr(contiguous, "CHUNK_TOKENS", 2)
    with engine.session(2, 50) as s:
        s.prefill(*padded([A, B]))
        with pytest.raises(NumericError) as e:
            if where == "decode":
                s.decode([NAN, 32])
            else:
                s.extend([[NAN, 25, 26] if where == "extend" else [24, 25, NAN]], [3], [0])
        assert e.value.exit_code == 4
        assert_logits(s.decode([23, 32]), [[*A, 23], [*B, 32]])


def test_a_failed_prefill_leaves_its_slot_free_and_usable(engine):
    with engine.session(2, 50) as s:
        s.prefill(*padded([A, B]))
        with pytest.raises(NumericError):
            s.prefill([[NAN]], [1], [0])
        with pytest.raises(UsageError, match="holds no sequence"):
            s.decode([20], [0])
        assert_logits(s.prefill([[40]], [1], [0]), [[40]])
        assert_logits(s.decode([41, 32]), [[40, 41], [*B, 32]])


def test_an_output_the_program_does_not_write_is_seen(engine):
    """The canary: buffers start as NaN, logits and rows."""

    class Silent(Spy):
        def run(self, tokens, past, lengths, caches):
            logits, rows = super().run(tokens, past, lengths, caches)
            rows[1, 0, 0] = np.nan
            return logits, rows

        def program(self, phase):
            return Silent(self.engine, phase)

    with pytest.raises(NumericError):
        session.Session(Silent(engine), 1, 10).prefill([[20]], [1])  # type: ignore[arg-type]


def test_both_output_buffers_start_as_nan(engine, monkeypatch):
    class Idle:
        def __init__(self, real) -> None:
            self.real = real

        def io_binding(self):
            return self.real.io_binding()

        def run_with_iobinding(self, binding) -> None:
            """A program that writes nothing."""

    program = engine.program("prefill")
    monkeypatch.setattr(program, "_session", Idle(program._session))
    one = np.ones(1, np.int64)
    empty = [np.zeros((1, 0, WIDTH), np.float32)] * LAYERS
    for output in program.run(one[None], one * 0, one, empty):
        assert np.isnan(output).all()


def test_no_memory_for_growth_is_a_resource_error_and_sequences_go_on(engine, monkeypatch):
    with engine.session(2, MAX_SEQ) as s:
        s.prefill(*padded([A, B]))
        real = np.zeros

        def full(shape, dtype=float):
            if np.prod(shape) > 256 * 2 * WIDTH:
                raise MemoryError
            return real(shape, dtype)

        monkeypatch.setattr(cache.np, "zeros", full)
        with pytest.raises(ResourceError, match="KV cache"):
            s.extend(np.full((2, 400), 20), [400, 400])
        monkeypatch.undo()
        assert_logits(s.decode([23, 32]), [[*A, 23], [*B, 32]])


def test_use_after_close(engine, tmp_path):
    s = engine.session(1, 10)
    s.prefill([[20]], [1])
    s.close()
    s.close()
    for call in (lambda: s.decode([20]), lambda: s.prefill([[20]], [1]), lambda: s.free(), lambda: s.length(0)):
        with pytest.raises(UsageError, match="closed"):
            call()
    toy_engine.build(tmp_path / "e")
    other = Engine.load(tmp_path / "e", threads=1)
    s = other.session(1, 10)
    s.prefill([[20]], [1])
    other.close()
    other.close()
    for call in (lambda: s.decode([20]), lambda: other.session(), lambda: other.generate([[20]])):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_loading_twice_gives_two_working_engines(engine):
    with Engine.load(engine.path, threads=1) as second:
        for e in (engine, second):
            with e.session(1, 10) as s:
                assert_logits(s.prefill([A], [3]), [A])


def test_concurrent_calls_on_one_session_and_on_two(engine):
    """Threads share slots of one session; a second session runs beside it."""
    failures: list[BaseException] = []

    def work(s, slot: int) -> None:
        try:
            ids = [20 + slot]
            s.prefill([ids], [1], [slot])
            for i in range(60):
                ids = [*ids, 30 + (i * 7 + slot) % 100]
                assert_logits(s.decode([ids[-1]], [slot]), [ids])
        except BaseException as e:
            failures.append(e)

    with engine.session(4, 100) as shared, engine.session(1, 100) as own:
        threads = [threading.Thread(target=work, args=(shared, i)) for i in range(4)]
        threads.append(threading.Thread(target=work, args=(own, 0)))
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
            assert not t.is_alive()
    assert not failures, failures[0]


def test_calls_of_one_session_wait_for_each_other(engine):
    inside, most = [0], [0]

    class Slow(Spy):
        def program(self, phase):
            return Slow(self.engine, phase)

        def run(self, tokens, past, lengths, caches):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1
            return super().run(tokens, past, lengths, caches)

    s = session.Session(Slow(engine), 4, 10)  # type: ignore[arg-type]
    threads = [threading.Thread(target=s.prefill, args=([[20]], [1], [i])) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert [s.length(i) for i in range(4)] == [1] * 4
    assert most == [1]


def test_memory_stays_flat_over_10_000_cycles(engine):
    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def cycles(n: int) -> None:
        with engine.session(2, 400) as s:
            for i in range(n):
                s.prefill([[20, 21], [22, 23]], [2, 1])
                s.decode([24, 25])
                if i % 10 == 0:
                    s.extend(np.full((1, 300), 20), [300], [1])
                if i % 7 == 0:
                    with pytest.raises(Dsv2Error):
                        s.decode([VOCAB, 20])
                s.free([1])
                s.free()

    cycles(500)
    gc.collect()
    before = rss()
    cycles(10_000)
    gc.collect()
    assert rss() - before < 8 << 20


def test_a_single_slot_costs_memory_only_where_it_is_used():
    """A single slot reserves all positions (7 GB) and touches a huge page per layer at most."""
    one = cache.Cache(LAYERS, 1, 1 << 20, 576)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    one.store(0, np.array([0]), np.array([4]), np.ones((LAYERS, 1, 4, 576), np.float32))
    assert one.capacity == 1 << 20
    assert int(Path("/proc/self/statm").read_text().split()[1]) * 4096 - before < 8 << 20
