"""Where one weight lies in an engine directory. Shared by the writer, the backends and the runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass

ITEM_BYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "int8": 1,
    "uint8": 1,
}
"""Bytes per element, by the dtype names of a manifest (those of torch without the prefix)."""


@dataclass(frozen=True)
class Placement:
    """``nbytes`` little-endian, row-major bytes at ``offset`` from the start of ``file``.

    ``file`` is relative to the engine directory; ``offset`` counts the file's header in;
    ``dtype`` is a key of `ITEM_BYTES`. Two names may share one placement.
    """

    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def consistent(self) -> bool:
        return self.nbytes == math.prod(self.shape) * ITEM_BYTES[self.dtype]
