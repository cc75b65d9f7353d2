"""A server in a thread of its own, from its socket to its clean end."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import NoReturn, Self

import uvicorn

from dsv2_compile.runtime import Engine
from dsv2_compile.runtime.requests import Stats
from dsv2_compile.serve.app import app
from dsv2_compile.serve.options import Options
from dsv2_compile.serve.service import Service

_BACKLOG = 2048
_ENDING = 5
"""Seconds for the last words to cancelled requests."""


class Server:
    """``engine`` at ``listener``, running from its beginning until `close`.

    The engine stays the caller's. Ends in two steps: `drain` takes no new requests and waits for those that run,
    `close` cancels what is left.
    """

    def __init__(self, engine: Engine, options: Options, listener: socket.socket) -> None:
        self.options = options
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        listener.listen(_BACKLOG)
        self._service = Service(engine, options)
        config = uvicorn.Config(
            app(self._service),
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # it tells of clients' mistakes, and of what we tell better
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_ENDING,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(listener,), name="dsv2-serve", daemon=True)
        self._thread.start()

    @property
    def responses(self) -> dict[tuple[str, int], int]:
        """How many there were, by path and status."""
        return dict(self._service.metrics.responses)

    @property
    def stats(self) -> Stats:
        return self._service.scheduler.stats

    def wait(self) -> NoReturn:
        """Until the server ends by itself, which it never should: with the error that made it."""
        self._service.ended.wait()
        raise self._service.fault or RuntimeError("the server has ended")

    def drain(self, seconds: float) -> None:
        """New requests are refused (503) while those that run come to their end, for at most ``seconds``."""
        self._service.draining = True
        end = time.monotonic() + seconds
        while self._service.active and time.monotonic() < end:
            time.sleep(0.05)

    def close(self) -> None:
        """Cancel what runs, tell its clients, stop. Closing twice is harmless."""
        self._service.draining = True
        self._service.scheduler.close()
        self.drain(_ENDING)
        self._uvicorn.should_exit = True
        self._thread.join()
        self._service.workers.shutdown()

    def _run(self, listener: socket.socket) -> None:
        try:
            self._uvicorn.run([listener])
        except BaseException as e:
            self._service.fault = e
        finally:
            self._service.ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
