"""One thread that runs a batch for many: requests come from any thread, tokens go out as they are made."""

from __future__ import annotations

import atexit
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Self

from numpy.typing import ArrayLike

from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import generate
from dsv2_compile.runtime.arguments import Ints
from dsv2_compile.runtime.batch import Batch
from dsv2_compile.runtime.generate import NO_TOKEN, Completion, Token
from dsv2_compile.runtime.requests import GREEDY, Event, Limits, Request, Stats
from dsv2_compile.runtime.sampling import Draw, Sampling
from dsv2_compile.runtime.session import Session
from dsv2_compile.runtime.text import TextStream

if TYPE_CHECKING:
    from dsv2_compile.runtime.engine import Engine

OnToken = Callable[[Token], object]


class Submission:
    """A request of a `Scheduler`: an iterator of its tokens, for one thread at a time.

    It ends with the last token, and where the request is cancelled. Where it fails, its error is raised.
    """

    def __init__(self, scheduler: Scheduler, number: int, stream: TextStream | None, on_token: OnToken | None) -> None:
        self.id = number
        self._scheduler, self._stream, self._on_token = scheduler, stream, on_token
        self._tokens: list[Token] = []
        self._taken = 0
        self._more: SimpleQueue[None] = SimpleQueue()  # wakes who waits for a token: one that a signal loses is no loss
        self._finish: str | None = None
        self._error: BaseException | None = None

    @property
    def finish(self) -> str | None:
        """None while the request is in flight, then "stop", "length", "cancelled" or "failed"."""
        return self._finish

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        if not (self._taken and self._tokens[self._taken - 1].finish):
            while self._taken == len(self._tokens):
                self._scheduler.require_other_thread()
                self._more.get()
            self._taken += 1
            if self._tokens[self._taken - 1].id != NO_TOKEN:
                return self._tokens[self._taken - 1]
        if self._error:
            raise self._error
        raise StopIteration

    def result(self) -> Completion:
        """Waits for the end: all tokens, those already taken from the iterator included."""
        for _ in self:
            pass
        tokens, finish = [t for t in self._tokens if t.id != NO_TOKEN], self._tokens[-1].finish
        assert finish is not None
        return Completion(tuple(t.id for t in tokens), "".join(t.text for t in tokens), finish)

    def cancel(self) -> None:
        """Returns at once; a token that is being made may still come. Nothing happens if the request has ended."""
        self._scheduler.cancel(self.id)

    def give(self, event: Event) -> None:
        """For the scheduler's thread."""
        token = generate.token(event, self._stream)
        self._error = token.error or self._error
        self._finish = token.finish
        if self._on_token:
            try:
                self._on_token(token)
            except BaseException as e:
                self._error, self._on_token = e, None
                self.cancel()
        self._tokens.append(token)
        self._more.put(None)


class Scheduler:
    """Runs requests together, as they come: each joins the batch when there is room and leaves when it has ended.

    Opened by `Engine.scheduler`. Everything may be called from any thread. Callbacks run on the scheduler's own, one at
    a time: what they do delays all requests. One that raises cancels its request, whose `result` then raises the same.
    When the engine is closed, all that is left fails.
    """

    def __init__(
        self, engine: Engine, max_batch: int | None, max_tokens: int | None, chunk_tokens: int, max_waiting: int
    ) -> None:
        """For `Engine.scheduler`."""
        for name, value in (("chunk_tokens", chunk_tokens), ("max_waiting", max_waiting)):
            if value < 1:
                raise UsageError(f"{name} is {value}.", "It must be at least 1.")
        self._engine = engine
        self._session = engine.session(engine.max_batch_size if max_batch is None else max_batch, max_tokens)
        self._lock = threading.Lock()  # always taken by itself, never by a generator's context manager: see Session
        self._batch = Batch(
            _Unlocked(self._session, self._lock),
            Limits.of(engine, self._session.max_tokens),
            engine.config.eos_token_ids,
            chunk_tokens,
            max_waiting,
        )
        self._numbers = itertools.count()
        self._submissions: dict[int, Submission] = {}
        self._drains: list[SimpleQueue[None]] = []
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closing = self._ended = False
        self._cause = "The scheduler is closed."
        # a daemon, and closed at exit: a forgotten scheduler does not keep the interpreter, nor runs while that goes
        self._thread = threading.Thread(target=self._work, name="dsv2-scheduler", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop_tokens: Iterable[int] = (),
        stream: int = 0,
        on_token: OnToken | None = None,
    ) -> Submission:
        """Queue a text, or token ids. The same ``stream`` of the same seed draws the same random numbers.

        ``on_token`` is called for every token and, where the request ends without one, once more.
        UsageError for a bad argument; ResourceError where the queue is full, or the cache could never hold it.
        """
        request = Request(
            generate.encode(self._engine, prompt), max_new_tokens, sampling or GREEDY, stream, frozenset(stop_tokens)
        )
        text = generate.text_stream(self._engine)
        with self._lock:
            if self._closing:
                raise UsageError(self._cause, "Open another with engine.scheduler().")
            submission = Submission(self, next(self._numbers), text, on_token)
            if not self._batch.busy:
                self._wake.put(None)
            self._batch.submit(submission.id, request)
            self._submissions[submission.id] = submission
        return submission

    def cancel(self, number: int) -> None:
        """As `Submission.cancel`, by its id."""
        with self._lock:
            if number in self._submissions:
                self._batch.cancel(number)

    @property
    def stats(self) -> Stats:
        with self._lock:
            return self._batch.stats()

    def drain(self) -> None:
        """Returns when nothing waits, nothing is live, and all callbacks have returned."""
        self.require_other_thread()
        done: SimpleQueue[None] = SimpleQueue()
        with self._lock:
            if self._ended:
                return
            self._wake.put(None)
            self._drains.append(done)
        done.get()

    def close(self) -> None:
        """Cancels what is left; returns after the last callback. Closing twice is harmless."""
        self.require_other_thread()
        with self._lock:
            self._closing = True
            self._wake.put(None)
        self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def require_other_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise UsageError("A callback cannot wait for its own scheduler.", "Wait for it in another thread.")

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    events = self._step() if self._batch.busy else None
                    if events is None and self._closing:
                        break
                    if events is None:
                        self._release_drains()
                if events is None:
                    self._wake.get()
                else:
                    for submission, event in events:
                        submission.give(event)
        except Exception as e:  # of none of the requests, so none can go on
            self._fail(e)
        with self._lock:
            self._closing = self._ended = True
            self._release_drains()
        self._session.close()

    def _step(self) -> list[tuple[Submission, Event]]:
        if self._closing:
            for number in self._submissions:
                self._batch.cancel(number)
        found = []
        for event in self._batch.step():
            take = self._submissions.pop if event.finish else self._submissions.get
            if submission := take(event.request, None):
                found.append((submission, event))
            else:  # a signal has cut its submit short
                self._batch.cancel(event.request)
        return found

    def _fail(self, e: Exception) -> None:
        with self._lock:
            self._closing, self._cause = True, f"The scheduler has ended: {e}"
            left, self._submissions = self._submissions, {}
        for submission in left.values():
            submission.give(Event(submission.id, None, "failed", e))

    def _release_drains(self) -> None:
        for done in self._drains:
            done.put(None)
        self._drains.clear()


class _Unlocked:
    """The calls of a session with the lock let go meanwhile: they take long."""

    def __init__(self, session: Session, lock: threading.Lock) -> None:
        self.max_batch, self._session, self._lock = session.max_batch, session, lock

    def start(self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: ArrayLike) -> Ints:
        return self._call(self._session.start, tokens, lengths, draws, slots)

    def resume(self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: ArrayLike) -> Ints:
        return self._call(self._session.resume, tokens, lengths, draws, slots)

    def step(self, tokens: ArrayLike, draws: Sequence[Draw], slots: ArrayLike) -> Ints:
        return self._call(self._session.step, tokens, draws, slots)

    def free(self, slots: ArrayLike) -> None:
        self._session.free(slots)

    def _call(self, call: Callable[..., Ints], *arguments: object) -> Ints:
        self._lock.release()
        try:
            return call(*arguments)
        finally:
            self._lock.acquire()
