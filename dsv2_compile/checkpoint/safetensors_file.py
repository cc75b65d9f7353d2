"""One safetensors file of unknown origin: its header checked whole, its data as views on a read-only mapping."""

from __future__ import annotations

import math
import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2_compile.checkpoint.fields import short
from dsv2_compile.checkpoint.files import FileError, open_file
from dsv2_compile.engine import strictjson

if TYPE_CHECKING:
    import torch

MAX_HEADER = 32 << 20
"""Bytes; the largest published DeepSeek-V2 shard needs 0.1 MB, the format itself allows 100 MB."""

TORCH_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""What a checkpoint may hold, safetensors name -> torch name."""

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class HeaderError(ValueError):
    """``problems``: one line each, naming the tensor where there is one."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Entry:
    """A tensor in the file. ``dtype`` is the safetensors name, ``start`` counts from the file's first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def part(self, start: int, shape: tuple[int, ...]) -> Entry:
        """The elements from ``start`` on, in row-major order, as ``shape``."""
        item = _BITS[self.dtype] // 8
        return Entry(self.dtype, shape, self.start + start * item, math.prod(shape) * item)


class SafetensorsFile:
    """``entries``: tensor name -> Entry. HeaderError or FileError if anything in the file is not as it must be.

    The mapping is shared with the file: a file cut short by another program while it is in use ends the process.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        fd = open_file(root, name)
        try:
            size = os.fstat(fd).st_size
            if size == 0:
                raise HeaderError(["incomplete: the file is empty"])
            try:
                self._map = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
            except OSError as e:
                raise FileError(f"cannot be mapped: {e.strerror}") from None
        finally:
            os.close(fd)
        self.entries = _parse(self._map, size)
        self._bytes: torch.Tensor | None = None

    def tensor(self, entry: Entry) -> torch.Tensor:
        """A view on the mapping, or a copy where the file does not align the data. Writing to a view is a fault."""
        import torch

        if self._bytes is None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
                self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        dtype: torch.dtype = getattr(torch, TORCH_DTYPES[entry.dtype])
        data = self._bytes[entry.start : entry.start + entry.nbytes]
        if entry.start % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(entry.shape)

    def data(self, entry: Entry) -> memoryview:
        return memoryview(self._map)[entry.start : entry.start + entry.nbytes]


def _parse(data: mmap.mmap, size: int) -> dict[str, Entry]:
    if size < 8:
        raise HeaderError([f"incomplete: {size} bytes, expected more than 8"])
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise HeaderError([f"not a safetensors file: header of {length} bytes, the limit is {MAX_HEADER}"])
    if 8 + length > size:
        raise HeaderError([f"incomplete: {size} bytes, expected more than {8 + length}"])
    try:
        header = strictjson.loads(data[8 : 8 + length], MAX_HEADER)
    except strictjson.JsonError as e:
        raise HeaderError([f"malformed header: {e}"]) from None
    if not isinstance(header, dict):
        raise HeaderError(["malformed header: not a JSON object"])
    problems: list[str] = []
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problems.append("malformed header: __metadata__ is not an object of strings")
    entries = {}
    for name, value in header.items():
        problem, entry = _entry(value, 8 + length)
        if entry is None:
            problems.append(f"tensor {short(name)}: {problem}")
        else:
            entries[name] = entry
    problems = problems or _layout_problems(entries, 8 + length, size)
    if problems:
        raise HeaderError(problems)
    return entries


def _entry(value: Any, base: int) -> tuple[str, Entry | None]:
    """("", entry) or (what is wrong, None)."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        return "its entry is not dtype, shape and data_offsets", None
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"unknown dtype {short(dtype)}", None
    if not _counts(shape) or len(shape) > 8:
        return f"shape {short(shape)} is not a list of up to 8 sizes", None
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {short(offsets)} are not a begin and an end", None
    bits, nbytes = math.prod(shape) * _BITS[dtype], offsets[1] - offsets[0]
    if bits != nbytes * 8:
        return f"{dtype} {short(shape)} is {short(bits)} bits, data_offsets give {nbytes} bytes", None
    return "", Entry(dtype, tuple(shape), base + offsets[0], nbytes)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _layout_problems(entries: dict[str, Entry], base: int, size: int) -> list[str]:
    """The data must follow each other without hole or overlap, to the end of the file."""
    problems = []
    at = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != at:
            kind = "overlaps the one before" if entry.start < at else "leaves a hole before it"
            problems.append(
                f"tensor {short(name)}: its data {kind}: begins at {entry.start - base}, expected {at - base}"
            )
        at = max(at, entry.start + entry.nbytes)
    if at > size:
        last = max(entries, key=lambda name: entries[name].start + entries[name].nbytes)
        problems.insert(0, f"incomplete: {size} bytes, expected {at}; the data of {short(last)} are past the end")
    if at < size:
        problems.append(f"{size - at} bytes after the last tensor; expected {at} in all, found {size}")
    return problems
