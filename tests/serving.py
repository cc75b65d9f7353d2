"""A server of the toy engine in a process of its own, and raw clients that misbehave as they like."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli_tools import start, wait_for

SLOW = """
import time
from dsv2_compile.runtime.session import Session
_step = Session.step
Session.step = lambda self, *a: (time.sleep(0.01), _step(self, *a))[1]
"""
"""For `command_line`: a decode step takes 10 ms and more."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.text)
        return value

    @property
    def error(self) -> dict[str, Any]:
        """In OpenAI's shape, or the test has failed."""
        assert self.json.keys() == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        return error


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Answer:
        return self._send(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self._send(urllib.request.Request(self.url + path, data, named))

    def _send(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=60) as r:
                return Answer(r.status, {k.lower(): v for k, v in r.headers.items()}, r.read().decode())
        except urllib.error.HTTPError as e:
            return Answer(e.code, {k.lower(): v for k, v in e.headers.items()}, e.read().decode())

    def metric(self, name: str) -> float:
        (value,) = re.findall(rf"^dsv2_{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(value)

    def raw(self, body: bytes | None, length: int | None = None, receive_buffer: int = 0) -> socket.socket:
        """A connection on which a completion was asked for, with ``length`` in its header, and ``body`` sent."""
        s = socket.socket()
        if receive_buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        s.settimeout(30)
        s.connect(("127.0.0.1", self.port))
        size = len(body or b"") if length is None else length
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {size}"
        s.sendall(head.encode() + b"\r\n\r\n" + (body or b""))
        return s


def body(prompt: Any, **fields: Any) -> bytes:
    return json.dumps({"prompt": prompt, **fields}).encode()


@contextlib.contextmanager
def served(engine: Path, *options: Any, setup: str = "") -> Iterator[Served]:
    process = start("serve", engine, "--port", 0, *options, setup=setup)
    try:
        line = wait_for(process, b"serving ").decode().splitlines()[-1]
        yield Served(process, int(line.rsplit(":", 1)[1].removesuffix("/v1")))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
