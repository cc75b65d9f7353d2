"""A hub of one model on the loopback interface: as much of the protocol as fetching a snapshot needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

MODEL = "some/model"
COMMIT = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Hub:
    """``status``: answered instead of anything. ``cut``: bytes of a file after which the connection is closed, once."""

    folder: Path
    url: str = ""
    status: int | None = None
    error_code: str | None = None
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[tuple[str, str]] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """The files of ``folder`` as the only commit of MODEL."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {path}")
            if hub.status is not None:
                self.reply(hub.status, b"{}", {"X-Error-Code": hub.error_code} if hub.error_code else {}, body)
            elif re.fullmatch(rf"/api/models/{MODEL}/revision/(main|v1|{COMMIT})|/api/models/{MODEL}", path):
                siblings = [{"rfilename": name} for name in hub.files()]
                info = {"_id": "1", "id": MODEL, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                self.reply(200, json.dumps(info).encode(), {}, body)
            elif path == f"/api/models/{MODEL}/tree/{COMMIT}":
                rows = [{"type": "file", "path": n, "size": len(d), "oid": oid(d)} for n, d in hub.files().items()]
                self.reply(200, json.dumps(rows).encode(), {}, body)
            elif (found := re.fullmatch(rf"/{MODEL}/resolve/{COMMIT}/(.+)", path)) and found[1] in hub.files():
                self.file(found[1], body)
            else:
                code = "RevisionNotFound" if f"/api/models/{MODEL}/revision/" in path else "RepoNotFound"
                self.reply(404, b"{}", {"X-Error-Code": code}, body)

        def file(self, name: str, body: bool) -> None:
            data = hub.files()[name]
            headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            status, start = 200, 0
            if asked:
                hub.ranges.append((name, asked[1]))
                status, start = 206, int(asked[1])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = hub.cut.pop(name, None) if body else None
            self.reply(status, data[start:], headers, body, cut)

        def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
