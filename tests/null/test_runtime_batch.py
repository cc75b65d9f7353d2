"""The core of continuous batching: the vectors that the C++ core is held to as well, and what they cannot say."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from dsv2_compile.errors import ResourceError, UsageError
from dsv2_compile.runtime.batch import Batch
from dsv2_compile.runtime.loaders import Pages
from dsv2_compile.runtime.native.pages import PagePool
from dsv2_compile.runtime.native.store import PagedStore
from dsv2_compile.runtime.requests import GREEDY, Limits, Request, Stats
from dsv2_compile.runtime.session import Session
from tests import batch_vectors
from tests.batch_vectors import FOLDER, RANDOM, FakeSession, random_vector
from tests.null.test_native_pages import PAGE, PLAN, Echo

VECTORS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


@pytest.mark.parametrize("name", VECTORS)
def test_the_core_does_what_the_vector_says(name):
    vector = VECTORS[name]
    assert vector["name"] == name
    found = batch_vectors.run(vector)
    for key in ("trace", "refusals", "calls"):
        assert found[key] == vector[key], vector["why"]


def test_vectors_are_those_of_their_script():
    assert RANDOM.keys() < VECTORS.keys()
    for name, seed in RANDOM.items():
        script = random_vector(name, seed)
        assert {k: VECTORS[name][k] for k in script} == script


def test_neighbours_chunks_and_failures_change_no_token():
    """Each request of a long run, alone and with its prompt in one piece: the same tokens, as far as they went."""
    for name in ("random_chunks", "random_failures"):
        vector = VECTORS[name]
        submits = [a["submit"] for a in vector["script"] if "submit" in a]
        by_request = [[e for e in vector["trace"] if e[0] == r] for r in range(len(submits))]
        for fields, events in zip(submits, by_request, strict=True):
            tokens = [token for _, token, _ in events if token != -1]
            if not tokens:
                continue
            alone = {**vector, "script": [{"step": 0, "submit": fields}], "chunk": 0}
            found = batch_vectors.run(alone)["trace"]
            assert [token for _, token, _ in found][: len(tokens)] == tokens
            if events[-1][2] in ("stop", "length", "failed"):
                assert [e[1:] for e in found] == [e[1:] for e in events]


def batch(pages: Pages | None = None, **options) -> Batch:
    return Batch(FakeSession(2, 16, 32), Limits(32, 16, pages), [], **options)


def test_stats_count_what_was_done():
    core = batch(Pages(4, 8, 8), chunk=3)
    core.submit(0, Request([1, 2, 3, 4], 2, GREEDY))
    core.submit(1, Request([5], 9, GREEDY))
    core.submit(2, Request([6], 1, GREEDY))
    core.step()
    core.step()
    core.cancel(1)
    expected = Stats(
        waiting=1, live=2, max_batch=2, pages_committed=5, page_count=8, submitted=3, finished=0, cancelled=0,
        failed=0, prompt_tokens=5, new_tokens=2, steps=2,
    )  # fmt: skip
    assert core.stats() == expected
    core.step()
    assert not core.busy
    assert core.step() == []
    assert core.stats() == dataclasses.replace(
        expected, waiting=0, live=0, pages_committed=0, finished=2, cancelled=1, prompt_tokens=6, new_tokens=4, steps=3
    )


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"prompt": []}, UsageError, "prompt is empty"),
        ({"prompt": [1.5]}, UsageError, "expected integers"),
        ({"prompt": [[1]]}, UsageError, "expected integers"),
        ({"prompt": [32]}, UsageError, "outside the vocabulary of 32"),
        ({"prompt": [1] * 17}, UsageError, "17 tokens, the engine takes 16"),
        ({"max_new_tokens": 0}, UsageError, "max_new_tokens is 0"),
        ({"stream": -1}, UsageError, "stream is -1"),
        ({"prompt": [1] * 8}, ResourceError, "needs 3 pages, the KV cache has 2 of 4 tokens"),
    ],
)
def test_refusals_say_why(changes, error, text):
    core = batch(Pages(4, 2, 2))
    with pytest.raises(error, match=text):
        core.submit(0, dataclasses.replace(Request([1], 1, GREEDY), **changes))
    assert not core.busy


def test_a_full_queue_says_so():
    core = batch(max_waiting=1)
    core.submit(0, Request([1], 1, GREEDY))
    with pytest.raises(ResourceError, match="1 requests are waiting"):
        core.submit(1, Request([1], 1, GREEDY))


def test_what_is_no_error_of_a_sequence_comes_through():
    class Broken(FakeSession):
        def start(self, *_):
            raise ZeroDivisionError

    core = Batch(Broken(2, 16, 32), Limits(32, 16), [])
    core.submit(0, Request([1], 1, GREEDY))
    with pytest.raises(ZeroDivisionError):
        core.step()


def test_pages_set_aside_suffice_for_a_paged_session():
    """A model whose next token is the sum of all that its pages hold of the sequence."""
    echo, pool = Echo(9 * PAGE), PagePool(9, PAGE)
    wide = 10**9
    session = Session(SimpleNamespace(config=SimpleNamespace(vocab_size=wide)), 3, 48, PagedStore(PLAN, echo, pool, 3))
    core = Batch(session, Limits(wide, 48, Pages(PAGE, 9, 9)), [], chunk=5)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(1, 50, int(rng.integers(1, 21))).tolist() for _ in range(25)]
    wanted = [int(rng.integers(1, 11)) for _ in prompts]
    for number, (prompt, count) in enumerate(zip(prompts, wanted, strict=True)):
        core.submit(number, Request(prompt, count, GREEDY))
    found: list[list[int]] = [[] for _ in prompts]
    while core.busy:
        for event in core.step():
            assert event.error is None
            found[event.request].append(event.token)
        assert pool.count - pool.free <= core.stats().pages_committed <= 9
    assert found == [[sum(p) * 2**i for i in range(n)] for p, n in zip(prompts, wanted, strict=True)]
    assert pool.free == 9
    assert {name for name, *_ in echo.calls} >= {"prefill", "extend", "decode-3"}
