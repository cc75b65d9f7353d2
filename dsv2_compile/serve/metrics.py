"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from dsv2_compile.runtime.requests import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)

_OF_STATS = {
    "waiting": ("requests_waiting", "gauge", "requests that wait for a slot"),
    "live": ("requests_live", "gauge", "requests that have a slot"),
    "max_batch": ("slots", "gauge", "most requests at once"),
    "pages_committed": ("pages_committed", "gauge", "pages of the KV cache set aside for live requests"),
    "page_count": ("pages", "gauge", "pages of the KV cache, 0 where it has none"),
    "submitted": ("requests_submitted_total", "counter", "sequences queued"),
    "finished": ("requests_finished_total", "counter", "sequences that came to their end"),
    "cancelled": ("requests_cancelled_total", "counter", "sequences whose client left, or has enough"),
    "failed": ("requests_failed_total", "counter", "sequences that the engine could not compute"),
    "prompt_tokens": ("prompt_tokens_total", "counter", "prompt tokens computed"),
    "new_tokens": ("new_tokens_total", "counter", "tokens made"),
    "steps": ("steps_total", "counter", "steps of the batch"),
}


class Histogram:
    def __init__(self, name: str, help: str, bounds: Sequence[float] = SECONDS) -> None:
        self._name, self._help, self._bounds = name, help, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        yield from _head(self._name, "histogram", self._help)
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'dsv2_{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"dsv2_{self._name}_sum {self._sum}"
        yield f"dsv2_{self._name}_count {total}"


class Metrics:
    """Of one server. Touched by the event loop only."""

    def __init__(self) -> None:
        self.responses: dict[tuple[str, int], int] = {}
        self.first_token = Histogram("time_to_first_token_seconds", "from the request to its first token")
        self.next_token = Histogram("time_per_output_token_seconds", "from a token to the next of its sequence")

    def responded(self, path: str, code: int) -> None:
        self.responses[path, code] = self.responses.get((path, code), 0) + 1

    def text(self, stats: Stats) -> str:
        return "\n".join([*self._responses(), *self.first_token.lines(), *self.next_token.lines(), *_stats(stats), ""])

    def _responses(self) -> Iterator[str]:
        yield from _head("http_responses_total", "counter", "responses by path and status")
        for (path, code), count in sorted(self.responses.items()):
            yield f'dsv2_http_responses_total{{path="{path}",code="{code}"}} {count}'


def _stats(stats: Stats) -> Iterator[str]:
    for field, value in asdict(stats).items():
        name, kind, help = _OF_STATS[field]
        yield from _head(name, kind, help)
        yield f"dsv2_{name} {value}"


def _head(name: str, kind: str, help: str) -> tuple[str, str]:
    return f"# HELP dsv2_{name} {help}", f"# TYPE dsv2_{name} {kind}"
