"""Scripts of what a batch is asked and what it must answer, in tests/vectors/batch: read here and by the C++ tests.

The short ones were reasoned by hand; each says why. Those called random_*.json are long runs of the Python core, kept
so that the C++ core is held to it; `python -m tests.batch_vectors` writes them anew.

A file: "vocab", "eos", "max_batch", "max_tokens", "chunk" (0: no limit), "page" and "pages" (size and count, 0: none),
"max_waiting", "nan_tokens" (a call fails in which a sequence holds one); "script", things done before step number
"step"; "trace", all events in order as [request, token or -1, finish or ""], a refusal as [request, -1, "refused"] at
its place; "refusals", their codes (2 usage, 6 resource); "calls" of the session as [kind, slots, counts, past].
Requests are numbered as they are submitted, refused ones too.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsv2_compile.errors import Dsv2Error, NotANumber
from dsv2_compile.runtime.batch import Batch
from dsv2_compile.runtime.loaders import Pages
from dsv2_compile.runtime.requests import Limits, Request
from dsv2_compile.runtime.sampling import Draw, Sampling, sample

FOLDER = Path(__file__).parent / "vectors" / "batch"
RANDOM = {"random_pages": 1, "random_chunks": 2, "random_failures": 3, "random_crowd": 4}


def logits(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """float32 [vocab], of the whole sequence."""
    h = 7
    for t in tokens:
        h = (h * 31 + t + 1) % 1_000_003
    v = np.arange(vocab)
    return (((h + 17 * v * v + 3 * v) % 97) / 8).astype(np.float32)


class FakeSession:
    """A session whose model is `logits`. A mistake of its caller's is an AssertionError."""

    def __init__(self, max_batch: int, max_tokens: int, vocab: int, nan_tokens: Sequence[int] = ()) -> None:
        self.max_batch, self._max_tokens, self._vocab = max_batch, max_tokens, vocab
        self._nan = frozenset(nan_tokens)
        self.held: dict[int, list[int]] = {}
        self.calls: list[list[Any]] = []

    def start(self, tokens: Any, lengths: Any, draws: Sequence[Draw], slots: Sequence[int]) -> np.ndarray:
        assert not self.held.keys() & set(slots), "a slot was not freed"
        return self._call("start", _rows(tokens, lengths), draws, slots)

    def resume(self, tokens: Any, lengths: Any, draws: Sequence[Draw], slots: Sequence[int]) -> np.ndarray:
        assert self.held.keys() >= set(slots)
        return self._call("resume", _rows(tokens, lengths), draws, slots)

    def step(self, tokens: Any, draws: Sequence[Draw], slots: Sequence[int]) -> np.ndarray:
        assert self.held.keys() >= set(slots)
        return self._call("step", [[t] for t in tokens], draws, slots)

    def free(self, slots: Sequence[int]) -> None:
        for slot in slots:
            del self.held[slot]

    def _call(self, kind: str, rows: list[list[int]], draws: Sequence[Draw], slots: Sequence[int]) -> np.ndarray:
        assert len(rows) == len(draws) == len(set(slots)) == len(slots) <= self.max_batch
        past = [self.held.get(s, []) for s in slots]
        whole = [p + r for p, r in zip(past, rows, strict=True)]
        assert max(map(len, whole)) <= self._max_tokens
        self.calls.append([kind, list(slots), [len(r) for r in rows], [len(p) for p in past]])
        if any(self._nan & set(w) for w in whole):
            raise NotANumber("NaN.", "Take another token.")
        self.held |= dict(zip(slots, whole, strict=True))
        return np.array([sample(logits(w, self._vocab), d) for w, d in zip(whole, draws, strict=True)])


def _rows(tokens: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    assert tokens.shape == (len(lengths), lengths.max())
    return [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]


def request(fields: dict[str, Any]) -> Request:
    sampling = Sampling(fields["temperature"], fields["top_k"], fields["top_p"], fields["seed"])
    return Request(fields["prompt"], fields["max_new_tokens"], sampling, fields["stream"], frozenset(fields["stop"]))


def run(vector: dict[str, Any]) -> dict[str, Any]:
    """The "trace", "refusals" and "calls" of ``vector``, found by the core."""
    session = FakeSession(vector["max_batch"], vector["max_tokens"], vector["vocab"], vector["nan_tokens"])
    pages = Pages(vector["page"], vector["pages"], vector["pages"]) if vector["page"] else None
    limits = Limits(vector["vocab"], vector["max_tokens"], pages)
    batch = Batch(session, limits, vector["eos"], vector["chunk"] or None, vector["max_waiting"])
    trace: list[list[Any]] = []
    refusals: list[int] = []
    script, number, step = list(vector["script"]), 0, 0
    while script or batch.busy:
        while script and script[0]["step"] == step:
            action = script.pop(0)
            if "cancel" in action:
                batch.cancel(action["cancel"])
                continue
            try:
                batch.submit(number, request(action["submit"]))
            except Dsv2Error as e:
                trace.append([number, -1, "refused"])
                refusals.append(e.exit_code)
            number += 1
        for e in batch.step():
            assert (e.error is not None) == (e.finish == "failed")
            trace.append([e.request, -1 if e.token is None else e.token, e.finish or ""])
        stats = batch.stats()
        assert stats.live <= vector["max_batch"]
        assert stats.pages_committed <= vector["pages"]
        assert session.held.keys() <= set(range(stats.max_batch))
        step += 1
    assert not session.held, "slots are held after the end"
    assert stats.pages_committed == 0
    assert stats.submitted == stats.finished + stats.cancelled + stats.failed == number - len(refusals)
    assert stats.new_tokens == sum(token != -1 for _, token, _ in trace)
    return {"trace": trace, "refusals": refusals, "calls": session.calls}


def write(vector: dict[str, Any]) -> None:
    """Into the folder: one key a line, what is done one a line, the rest filled up to 120 columns."""
    parts = []
    for key, value in vector.items():
        text = json.dumps(value)
        if key == "script":
            text = "[\n" + ",\n".join(f"    {json.dumps(v)}" for v in value) + "\n  ]"
        elif isinstance(value, list) and len(text) > 100:
            items = ", ".join(json.dumps(v).replace(" ", "") for v in value)
            text = "[\n" + textwrap.fill(items, 116, initial_indent="    ", subsequent_indent="    ") + "\n  ]"
        parts.append(f"  {json.dumps(key)}: {text}")
    (FOLDER / f"{vector['name']}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


def random_vector(name: str, seed: int) -> dict[str, Any]:
    """A run of 80 requests that come in bursts, some of them cancelled, some refused, some failing."""
    rng = np.random.default_rng(seed)
    pick = lambda *values: values[rng.integers(len(values))]
    paged, vocab, max_tokens = name in ("random_pages", "random_failures"), 48, 40
    script: list[dict[str, Any]] = []
    step = submitted = 0
    while submitted < 80:
        for _ in range(rng.integers(0, 6)):
            hot = rng.random() < 0.6
            fields = {
                "prompt": rng.integers(1, vocab, int(pick(1, 2, 5, 9, 20, 38, 41))).tolist(),
                "max_new_tokens": int(pick(1, 2, 5, 9, 30)),
                "temperature": pick(0.5, 1.0, 3.0) if hot else 0.0,
                "top_k": pick(0, 0, 3, 20),
                "top_p": pick(1.0, 1.0, 0.9, 0.5),
                "seed": int(rng.integers(0, 4)),
                "stream": int(rng.integers(0, 3)),
                "stop": rng.integers(1, vocab, int(pick(0, 0, 1))).tolist(),
            }
            script.append({"step": step, "submit": fields})
            submitted += 1
        if submitted and rng.random() < 0.3:
            script.append({"step": step, "cancel": int(rng.integers(max(0, submitted - 12), submitted))})
        step += int(pick(1, 1, 2, 7))
    return {
        "name": name,
        "why": "A long run of the Python core.",
        "vocab": vocab,
        "eos": [0],
        "max_batch": 5 if name != "random_crowd" else 17,
        "max_tokens": max_tokens,
        "chunk": 0 if name == "random_crowd" else int(pick(5, 8, 13)),
        "page": 8 if paged else 0,
        "pages": 13 if paged else 0,
        "max_waiting": 40 if name == "random_crowd" else 9,
        "nan_tokens": [7, 11] if name == "random_failures" else [],
        "script": script,
    }


if __name__ == "__main__":
    for name, seed in RANDOM.items():
        vector = random_vector(name, seed)
        write(vector | run(vector))
