"""What a cubin takes and does, read from the cubin itself with the tools that Triton ships."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dsv2_compile.backends.cuda.instruction_mix import MATRIX, Mix, instructions, main_loop, mix, width

_FUNCTION = re.compile(r"^ Function (\S+):\n(.*)$", re.MULTILINE)
_GLOBAL = {"LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG"}


@dataclass(frozen=True)
class Usage:
    """``registers``, ``stack`` in bytes: per thread. ``shared``: static bytes, with what the system reserves.
    ``spill_stores``, ``spill_loads``: instructions on local memory. ``matrix``: matrix instructions, opcode and
    count, the strongest first. ``widest``: bytes of the widest access to global memory. ``abi``: of the ELF file.
    ``loop``, ``code``: what one turn of the main loop is made of, and all of the code; see `mix`."""

    architecture: str
    abi: int
    registers: int
    stack: int
    shared: int
    spill_stores: int
    spill_loads: int
    matrix: tuple[tuple[str, int], ...]
    widest: int
    instructions: int
    loop: Mix = ()
    code: Mix = ()


def examine(image: bytes) -> Usage:
    """Raises ValueError if ``image`` is no cubin with one function, CalledProcessError if a tool fails."""
    architecture, abi = _header(image)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        Path(f.name).write_bytes(image)
        usage = _FUNCTION.findall(_tool("cuobjdump", "--dump-resource-usage", f.name))
        sass = _tool("nvdisasm", "--print-code", "--no-dataflow", f.name)
    if len(usage) != 1:
        raise ValueError(f"a cubin of {len(usage)} functions, expected one")
    figures = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage[0][1])}
    code, labels = instructions(sass)
    opcodes = Counter(i.opcode for i in code)
    return Usage(
        architecture=architecture,
        abi=abi,
        registers=figures["REG"],
        stack=figures["STACK"],
        shared=figures["SHARED"],
        spill_stores=opcodes["STL"],
        spill_loads=opcodes["LDL"],
        matrix=tuple((m, opcodes[m]) for m in MATRIX if opcodes[m]),
        widest=max((width(i.name) for i in code if i.opcode in _GLOBAL), default=0),
        instructions=len(code),
        loop=mix(main_loop(code, labels)),
        code=mix(code),
    )


def _header(image: bytes) -> tuple[str, int]:
    """Architecture and ABI version. ABI 8 moved the architecture one byte up in the flags."""
    if image[:5] != b"\x7fELF\x02" or image[18] != 190 or len(image) < 52:
        raise ValueError("no cubin: no ELF file of CUDA")
    abi, flags = image[8], int.from_bytes(image[48:52], "little")
    return f"sm_{(flags >> 8 if abi >= 8 else flags) & 0xFF}", abi


def _tool(name: str, *args: str) -> str:
    import triton

    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *args], capture_output=True, text=True, check=True).stdout
