"""How an engine is served."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """``name``: of the model. None stands for the engine's own limits. ``max_body``: bytes of a request.

    ``client_timeout``: seconds that a client may take to send a request, or to take what was written for it.
    ``api_key``: asked of every request but those for /health.
    """

    name: str
    max_batch: int | None = None
    max_tokens: int | None = None
    chunk_tokens: int = 256
    max_waiting: int = 1024
    max_body: int = 4 << 20
    client_timeout: float = 60.0
    api_key: str | None = None
