"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Gives out a text up to the first of ``stops``, never a part of what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What of the text so far is certain to be before any stop string; may be empty."""
        held = self._held + text
        places = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        self.found = bool(places)
        end = min(places) if places else len(held) - self._partial(held)
        self._held = "" if places else held[end:]
        return held[:end]

    def end(self) -> str:
        """What was held back, where no more is coming."""
        out, self._held = self._held, ""
        return out

    def _partial(self, text: str) -> int:
        """Characters at the end of ``text`` that a stop string begins with, at most."""
        most = max((len(stop) - 1 for stop in self._stops), default=0)
        return next((n for n in range(min(most, len(text)), 0, -1) if self._begins(text[-n:])), 0)

    def _begins(self, ending: str) -> bool:
        return any(stop.startswith(ending) for stop in self._stops)
