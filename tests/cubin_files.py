"""Cubins with everything that is read of one before a driver is given it, and no code."""

from __future__ import annotations

import struct

from dsv2_compile.plan.plan import KernelEntry
from dsv2_compile.runtime.native.launches import widths

CUDA = 190
"""The machine of an ELF file."""


def cubin(entry: KernelEntry) -> bytes:
    return elf(entry.symbol, widths(entry))


def elf(symbol: str, parameters: tuple[int, ...], machine: int = CUDA) -> bytes:
    """A kernel ``symbol`` that takes parameters of so many bytes."""
    name = symbol.encode() + b"\0"
    info, at = b"", 0
    for i, size in enumerate(parameters):
        info += struct.pack("<BBHIHHI", 4, 0x17, 12, 0, i, at, size << 18 | 0x1F000)
        at += size
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0x10, 4, 0, 0)
    names = b"\0.symtab\0.strtab\0.shstrtab\0.nv.info." + name
    sections = ((1, 2, symbols, 2, 24), (9, 3, b"\0" + name, 0, 0), (17, 3, names, 0, 0), (27, 0x70000000, info, 0, 0))
    data, table = bytearray(64), bytearray(64)
    for text, kind, contents, link, size in sections:
        table += struct.pack("<IIQQQQIIQQ", text, kind, 0, 0, len(data), len(contents), link, 0, 1, size)
        data += contents
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, 0, 0, len(data), 0, 64, 0, 0, 64, 5, 3
    )
    data[: len(head)] = head
    return bytes(data + table)
