"""A real browser without a window: what a page is after its scripts ran, and what it looks like."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")


class Dom(HTMLParser):
    """``tags``: (name, attributes) of every element, ``texts``: all that is text but scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._raw = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.texts.append(data)

    def of(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        """Attributes of all elements ``tag`` with the class ``kind``."""
        found = [a for t, a in self.tags if t == tag]
        return [a for a in found if not kind or kind in (a.get("class") or "").split()]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def dom(page: Path, width: int = 1280, *flags: str) -> Dom:
    """Of ``page`` once its scripts have run."""
    return Dom(_run(page, width, 900, "--dump-dom", "--virtual-time-budget=4000", *flags))


def after(page: Path, script: str, width: int = 1280) -> dict[str, str | None]:
    """``data-`` attributes of the root once ``script`` ran behind those of ``page``, whose policy is lifted for it."""
    html = page.read_text("utf-8")
    start = html.index('<meta http-equiv="Content-Security-Policy"')
    html = html[:start] + html[html.index(">", start) + 1 :]
    probed = page.with_name(f"probed_{page.name}")
    tell = 'setTimeout(() => parent.postMessage({ ...document.documentElement.dataset }, "*"), 500)'
    probed.write_text(html.replace("</body>", f"<script>{script};{tell}</script></body>"), encoding="utf-8")
    return dom(framed(probed, width)).of("html")[0]


def framed(page: Path, width: int, height: int = 900) -> Path:
    """A page that shows ``page`` in a frame, which may be narrower than any window, and keeps what it posts."""
    out = page.with_name(f"framed_{page.name}")
    keep = 'addEventListener("message", e => Object.assign(document.documentElement.dataset, e.data))'
    frame = f'<iframe src="{page.name}" width="{width}" height="{height}" style="border:0;display:block"></iframe>'
    out.write_text(f'<!doctype html><body style="margin:0"><script>{keep}</script>{frame}', encoding="utf-8")
    return out


def picture(page: Path, out: Path, width: int, height: int, *flags: str) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3]."""
    _run(page, width, height, f"--screenshot={out}", *flags)
    return decode(out.read_bytes())


def decode(png: bytes) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, channels] of a PNG with 8 bits a channel, no palette and no interlacing."""
    chunks, at = {}, 8
    while at < len(png):
        (length,), kind = struct.unpack_from(">I", png, at), png[at + 4 : at + 8]
        chunks[kind] = chunks.get(kind, b"") + png[at + 8 : at + 8 + length]
        at += 12 + length
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    channels = {2: 3, 6: 4}[colour]
    assert (depth, interlaced) == (8, 0)
    raw, stride = zlib.decompress(chunks[b"IDAT"]), width * channels
    rows, above = [], bytearray(stride)
    for y in range(height):
        start = y * (stride + 1)
        above = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), above, channels)
        rows.append(above)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(height, width, channels)


def _unfiltered(kind: int, row: bytearray, above: bytearray, channels: int) -> bytearray:
    """One row of pixels, by the filters of the PNG specification, section 9."""
    if kind == 0:
        return row
    if kind == 2:
        return bytearray((np.frombuffer(row, np.uint8) + np.frombuffer(above, np.uint8)).tobytes())
    for i in range(len(row)):
        left = row[i - channels] if i >= channels else 0
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + above[i]) // 2
        else:
            corner = above[i - channels] if i >= channels else 0
            guess = min((left, above[i], corner), key=lambda v: abs(left + above[i] - corner - v))
        row[i] = (row[i] + guess) & 255
    return row


def _run(page: Path, width: int, height: int, *flags: str) -> str:
    assert BROWSER is not None
    size = f"--window-size={width},{height}"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, *flags]
    ran = subprocess.run([*command, page.resolve().as_uri()], capture_output=True, timeout=100, check=True)
    return ran.stdout.decode()
