"""The scheduler: threads that submit, tokens that stream, cancellation, failures, the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest

from dsv2_compile.errors import NumericError, ResourceError, UsageError
from dsv2_compile.runtime import Engine, Sampling, Scheduler
from dsv2_compile.runtime.generate import NO_TOKEN
from dsv2_compile.runtime.loaders import Pages
from tests import batch_vectors, toy_engine
from tests.null.test_runtime_interrupt import interrupted
from tests.toy_engine import EOS, MAX_BATCH, NAN

SOURCE = toy_engine.ToySource()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines") / "toy"
    toy_engine.build(out)
    return out


@pytest.fixture(scope="module")
def engine(folder):
    with Engine.load(folder, threads=1) as e:
        yield e


class FakeEngine:
    """An engine whose model is that of the vectors. Its calls wait at ``gate``, if that is closed."""

    max_batch_size, max_seq_len, has_text = 4, 64, False

    def __init__(self, pages: Pages | None = None, nan_tokens: tuple[int, ...] = ()) -> None:
        self.config = SimpleNamespace(vocab_size=48, eos_token_ids=(0,))
        self.pages, self.nan_tokens = pages, nan_tokens
        self.gate, self.arrived = threading.Event(), threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.held = False
        self.closed = 0

    def session(self, max_batch: int, max_tokens: int | None) -> FakeSession:
        self.opened = FakeSession(self, max_batch, max_tokens or self.max_seq_len)
        return self.opened

    def hold_once(self, token: object) -> None:
        """A callback: closes the gate with the first token it hears of."""
        if not self.held:
            self.held = True
            self.gate.clear()


class FakeSession(batch_vectors.FakeSession):
    def __init__(self, engine: FakeEngine, max_batch: int, max_tokens: int) -> None:
        super().__init__(max_batch, max_tokens, engine.config.vocab_size, engine.nan_tokens)
        self.engine, self.max_tokens = engine, max_tokens

    def _call(self, *args):
        self.engine.arrived.set()
        assert self.engine.gate.wait(10)
        if self.engine.error:
            raise self.engine.error
        return super()._call(*args)

    def close(self) -> None:
        self.engine.closed += 1


def scheduler(engine: FakeEngine, max_batch: int = 4, chunk_tokens: int = 8, max_waiting: int = 1024) -> Scheduler:
    return Scheduler(engine, max_batch, None, chunk_tokens, max_waiting)


def alone(prompt: list[int], max_new: int, sampling: Sampling, stream: int) -> list[int]:
    """What the fake model makes of one prompt."""
    fields = {**vars(sampling), "prompt": prompt, "max_new_tokens": max_new, "stream": stream, "stop": []}
    vector = {"max_batch": 1, "max_tokens": 64, "vocab": 48, "nan_tokens": [], "page": 0, "pages": 0, "eos": [0]}
    script = [{"step": 0, "submit": fields}]
    return [t for _, t, _ in batch_vectors.run(vector | {"chunk": 0, "max_waiting": 1, "script": script})["trace"]]


def greedy(ids: list[int], steps: int) -> list[int] | None:
    """By the oracle; None where another order of additions could choose another token, or the NaN token comes."""
    out: list[int] = []
    while len(out) < steps and EOS not in out:
        logits = toy_engine.oracle(SOURCE, ids + out)
        order = np.argsort(logits)
        if logits[order[-1]] - logits[order[-2]] < 1e-4 * abs(logits).max() or order[-1] == NAN:
            return None
        out.append(int(order[-1]))
    return out


# Tokens


def test_threads_that_join_and_leave_get_the_tokens_of_each_prompt_alone(engine):
    rng = np.random.default_rng(3)
    cases = []
    while len(cases) < 60:
        ids, steps = rng.integers(NAN + 1, 256, int(rng.integers(1, 40))).tolist(), int(rng.integers(1, 12))
        if (expected := greedy(ids, steps)) is not None:
            cases.append((ids, steps, expected))
    found: dict[int, tuple[int, ...]] = {}

    def client(s: Scheduler, which: range) -> None:
        for i in which:
            found[i] = s.submit(cases[i][0], cases[i][1]).result().tokens

    with engine.scheduler(max_batch=MAX_BATCH, max_tokens=64, chunk_tokens=16) as s:
        clients = [threading.Thread(target=client, args=(s, range(k, len(cases), 12))) for k in range(12)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        stats = s.stats
    assert [list(found[i]) for i in range(len(cases))] == [expected for _, _, expected in cases]
    assert (stats.submitted, stats.finished, stats.waiting, stats.live) == (60, 60, 0, 0)
    assert stats.new_tokens == sum(len(expected) for _, _, expected in cases)
    assert stats.steps < stats.new_tokens / 2, "the requests were not run together"


def test_sampled_tokens_depend_on_seed_and_stream_and_not_on_company():
    rng = np.random.default_rng(5)
    cases = [
        (rng.integers(1, 48, int(rng.integers(1, 30))).tolist(), int(rng.integers(1, 20)),
         Sampling(float(rng.choice([0, 1, 4])), seed=int(rng.integers(3))), int(rng.integers(3)))
        for _ in range(300)
    ]  # fmt: skip
    fake = FakeEngine()
    with scheduler(fake, chunk_tokens=8) as s:
        submissions = [s.submit(ids, n, sampling, stream=stream) for ids, n, sampling, stream in cases]
        for case, submission in zip(cases, submissions, strict=True):
            assert list(submission.result().tokens) == alone(*case)
    assert max(sum(counts) for kind, _, counts, _ in fake.opened.calls if kind != "step") == 8


def test_text_streams_and_adds_up_as_in_generate(engine):
    (expected,) = engine.generate("héllo", max_new_tokens=6).completions()
    called: list = []
    with engine.scheduler() as s:
        submission = s.submit("héllo", 6, on_token=called.append)
        assert submission.id == 0
        tokens = list(submission)
        assert list(submission) == []
        assert submission.result() == expected
        assert submission.finish == expected.finish == tokens[-1].finish
    assert called == tokens
    assert [t.prompt for t in tokens] == [0] * 6
    assert [t.finish for t in tokens[:-1]] == [None] * 5
    assert "".join(t.text for t in tokens) == expected.text


def test_tokens_come_while_the_request_runs():
    fake = FakeEngine()
    with scheduler(fake) as s:
        submission = s.submit([1, 2], 50, on_token=fake.hold_once)
        first = next(submission)
        assert first.finish is submission.finish is None
        fake.gate.set()
        assert [first.id, *(t.id for t in submission)] == alone([1, 2], 50, Sampling(), 0)


def test_stop_tokens_end_a_request_and_are_no_text(engine):
    (whole,) = engine.generate("abc", max_new_tokens=5).completions()
    with engine.scheduler() as s:
        cut = s.submit("abc", 5, stop_tokens=[whole.tokens[0]]).result()
    assert (cut.tokens, cut.text, cut.finish) == (whole.tokens[:1], "", "stop")


# Cancellation


def test_cancellation_from_another_thread_and_in_the_queue():
    fake = FakeEngine()
    with scheduler(fake, max_batch=1) as s:
        live = s.submit([1], 60, on_token=fake.hold_once)
        waiting = s.submit([2], 60)
        first = next(live)
        for submission in (waiting, live):
            thread = threading.Thread(target=submission.cancel)
            thread.start()
            thread.join()
        live.cancel()
        assert live.finish is waiting.finish is None
        fake.gate.set()
        assert list(waiting) == []
        assert waiting.result().finish == waiting.finish == "cancelled"
        result = live.result()
        assert result.finish == "cancelled"
        assert result.tokens[0] == first.id
        assert list(result.tokens) == alone([1], 60, Sampling(), 0)[: len(result.tokens)]
        assert len(result.tokens) <= 2, "a token more than the one that was being made"
        assert s.submit([3], 2).result().finish == "length"
        live.cancel()
        assert s.stats.cancelled == 2


def test_a_callback_cancels_and_hears_of_it():
    heard: list = []

    def on_token(token) -> None:
        heard.append(token)
        if len(heard) == 3:
            s.cancel(token.prompt)

    with scheduler(FakeEngine()) as s:
        result = s.submit([1], 60, on_token=on_token).result()
    assert result.finish == "cancelled"
    assert [t.id for t in heard] == [*result.tokens, NO_TOKEN]
    assert len(result.tokens) == 3
    assert heard[-1].finish == "cancelled"


def test_an_exception_of_a_callback_ends_its_request_only():
    def on_token(token) -> None:
        calls.append(token)
        raise SystemExit("mine")

    calls: list = []
    with scheduler(FakeEngine()) as s:
        bad, good = s.submit([1], 60, on_token=on_token), s.submit([2], 9)
        with pytest.raises(SystemExit, match="mine"):
            bad.result()
        assert bad.finish == "cancelled"
        assert list(good.result().tokens) == alone([2], 9, Sampling(), 0)
    assert len(calls) == 1


@pytest.mark.parametrize("wait", ["result", "drain", "close"])
def test_a_callback_cannot_wait_for_its_own_scheduler(wait):
    def on_token(token) -> None:
        {"result": lambda: submissions.get().result(), "drain": s.drain, "close": s.close}[wait]()

    submissions: SimpleQueue = SimpleQueue()
    with scheduler(FakeEngine()) as s:
        submission = s.submit([1], 60, on_token=on_token)
        submissions.put(submission)
        with pytest.raises(UsageError, match="cannot wait"):
            submission.result()


# Failures and refusals


def test_a_failing_sequence_harms_no_other(engine):
    ids = [20, 30, 40]
    (expected,) = engine.generate([ids], max_new_tokens=8).completions()
    heard: list = []
    with engine.scheduler(chunk_tokens=4) as s:
        good = [s.submit(ids, 8) for _ in range(3)]
        bad = s.submit([20] * 6 + [NAN], 8, on_token=heard.append)
        more = s.submit(ids, 8)
        with pytest.raises(NumericError, match="NaN"):
            bad.result()
        assert [g.result().tokens for g in (*good, more)] == [expected.tokens] * 4
        assert bad.finish == "failed"
        with pytest.raises(NumericError):
            next(bad)
        assert s.stats.failed == 1
    (end,) = heard
    assert (end.id, end.finish, type(end.error).__name__) == (NO_TOKEN, "failed", "NotANumber")


def test_a_full_pool_makes_requests_wait_and_refuses_what_it_could_never_hold():
    seen: list = []
    with scheduler(FakeEngine(Pages(8, 4, 4))) as s:
        with pytest.raises(ResourceError, match="needs 5 pages"):
            s.submit([1] * 30, 3)
        submissions = [s.submit([k], 15, on_token=lambda _: seen.append(s.stats)) for k in range(1, 6)]
        for k, submission in enumerate(submissions, 1):
            assert list(submission.result().tokens) == alone([k], 15, Sampling(), 0)
        assert s.stats.pages_committed == 0
    assert max(stats.live for stats in seen) == 2
    assert max(stats.pages_committed for stats in seen) == 4


def test_a_full_queue_refuses_at_once_and_recovers():
    fake = FakeEngine()
    fake.gate.clear()
    with scheduler(fake, max_batch=1, max_waiting=2) as s:
        submissions = [s.submit([1], 2)]
        assert fake.arrived.wait(10)
        submissions += [s.submit([2], 2), s.submit([3], 2)]
        with pytest.raises(ResourceError, match="2 requests are waiting"):
            s.submit([4], 2)
        assert (s.stats.live, s.stats.waiting, s.stats.submitted) == (1, 2, 3)
        fake.gate.set()
        assert [x.result().finish for x in submissions] == ["length"] * 3
        assert s.submit([4], 2).result().finish == "length"


@pytest.mark.parametrize("bad", [{"prompt": []}, {"prompt": [48]}, {"prompt": None}, {"max_new_tokens": 0},
                                 {"stream": -1}, {"prompt": [1] * 65}], ids=str)  # fmt: skip
def test_bad_requests_are_refused_at_once(bad):
    with scheduler(FakeEngine()) as s:
        with pytest.raises(UsageError):
            s.submit(**{"prompt": [1], **bad})
        assert s.stats.submitted == 0


@pytest.mark.parametrize("bad", [{"max_batch": 0}, {"max_batch": MAX_BATCH + 1}, {"max_tokens": 0},
                                 {"chunk_tokens": 0}, {"max_waiting": 0}], ids=str)  # fmt: skip
def test_bad_options_are_usage_errors(engine, bad):
    threads = threading.active_count()
    with pytest.raises(UsageError, match=next(iter(bad))):
        engine.scheduler(**bad)
    assert threading.active_count() == threads


def test_an_engine_closed_under_it_ends_all_with_its_error(folder):
    with Engine.load(folder, threads=1) as engine, engine.scheduler(max_batch=2) as s:
        submissions = [s.submit([20 + k], 2000) for k in range(5)]
        next(submissions[0])
        engine.close()
        for submission in submissions:
            with pytest.raises(UsageError, match="The engine is closed"):
                submission.result()


def test_an_error_that_is_of_no_sequence_ends_the_scheduler():
    fake = FakeEngine()
    heard: list = []
    s = scheduler(fake, max_batch=1)
    fake.error = ZeroDivisionError("a bug")
    submissions = [s.submit([1], 5, on_token=heard.append)]
    for submission in submissions:
        with pytest.raises(ZeroDivisionError):
            submission.result()
    s.drain()
    with pytest.raises(UsageError, match="The scheduler has ended: a bug"):
        s.submit([1], 5)
    assert [(t.id, t.finish) for t in heard] == [(NO_TOKEN, "failed")]
    s.close()
    assert fake.closed == 1


# The end


def test_drain_waits_for_all_and_their_callbacks():
    heard: list = []
    with scheduler(FakeEngine()) as s:
        s.drain()
        for k in range(1, 9):
            s.submit([k], 20, on_token=heard.append)
        s.drain()
        assert sum(t.finish is not None for t in heard) == 8
        assert (s.stats.waiting, s.stats.live) == (0, 0)
    s.drain()


def test_what_has_ended_is_forgotten():
    with scheduler(FakeEngine()) as s:
        ended = weakref.ref(s.submit([1], 3))
        s.drain()
        s.submit([2], 3).result()
        gc.collect()
        assert ended() is None


def test_close_cancels_the_rest_and_returns_after_the_last_callback():
    fake = FakeEngine()
    heard: list = []
    s = scheduler(fake, max_batch=2)
    submissions = [s.submit([1], 60, on_token=fake.hold_once)]
    next(submissions[0])
    submissions += [s.submit([k], 60, on_token=heard.append) for k in range(2, 6)]
    closing = threading.Thread(target=s.close)
    closing.start()
    fake.gate.set()
    closing.join()
    s.close()
    assert {x.finish for x in submissions} == {"cancelled"}
    assert sorted(t.prompt for t in heard if t.id == NO_TOKEN) == [1, 2, 3, 4]
    assert [x.result().finish for x in submissions] == ["cancelled"] * 5
    assert fake.closed == 1
    with pytest.raises(UsageError, match="closed"):
        s.submit([1], 1)
    submissions[0].cancel()


def test_a_scheduler_left_open_does_not_keep_the_interpreter(folder):
    code = (
        "import sys\n"
        "from dsv2_compile.runtime import Engine\n"
        "s = Engine.load(sys.argv[1], threads=1).scheduler()\n"
        "idle = Engine.load(sys.argv[1], threads=1).scheduler()\n"
        "submission = s.submit([20], 2000, on_token=lambda t: t.finish and print(t.finish))\n"
        "next(submission)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "cancelled\n"


@pytest.mark.parametrize("name", ["submit", "cancel", "stats", "drain", "close", "next"])
def test_a_signal_anywhere_in_a_call_leaves_the_scheduler_at_work(name):
    moment, hit = 0, True
    while hit:
        with scheduler(FakeEngine()) as s:
            submission = s.submit([1], 4)
            calls = {
                "submit": lambda s=s: s.submit([2], 2),
                "cancel": submission.cancel,
                "stats": lambda s=s: s.stats,
                "drain": s.drain,
                "close": s.close,
                "next": lambda x=submission: next(x),
            }
            hit = interrupted(calls[name], moment)
            assert s._lock.acquire(timeout=5), f"the lock is held after an interrupt at event {moment} of {name}"
            s._lock.release()
            if name != "close":
                s.drain()
                assert list(s.submit([3], 2).result().tokens) == alone([3], 2, Sampling(), 0)
        moment += 1
    assert moment > 2
