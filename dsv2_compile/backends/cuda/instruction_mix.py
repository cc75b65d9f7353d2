"""What kinds of instructions a kernel consists of, and its main loop, from the text of nvdisasm."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MATRIX = ("UTCHMMA", "UTCQMMA", "UTCIMMA", "HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "IMMA", "OMMA", "DMMA")
"""Matrix instructions by opcode, those of sm_100 and of warp groups of sm_90 first."""
WARPGROUP = ("HGMMA", "QGMMA", "IGMMA")

Mix = tuple[tuple[str, int], ...]

_CLASSES = {
    **dict.fromkeys(MATRIX, "matrix"),
    **dict.fromkeys(("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2", "HFMA2", "HADD2", "HMUL2", "IMAD"), "fma"),
    **dict.fromkeys(("MUFU", "F2F", "F2I", "I2F", "F2FP16", "FRND", "POPC", "FLO"), "special"),
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM", "ATOMS", "SHFL"), "shared"),
    **dict.fromkeys(("LDG", "STG", "RED", "ATOMG", "LD", "ST"), "global"),
    **dict.fromkeys(("LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP"), "async"),
    **dict.fromkeys(("LDL", "STL"), "local"),
    **dict.fromkeys(("BAR", "DEPBAR", "WARPGROUP", "SYNCS", "MEMBAR", "FENCE", "UTCBAR"), "barrier"),
    **dict.fromkeys(
        ("BRA", "EXIT", "NOP", "BSSY", "BSYNC", "RET", "CALL", "WARPSYNC", "LDC", "ULDC", "S2R"), "control"
    ),
}
"""Class of an opcode. One that starts with U is "uniform", any other "alu"."""

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]+)(.*)$")
_LABEL = re.compile(r"^(\.L_\w+):")
_BRANCH = re.compile(r"`\((\.L_\w+)\)")
_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "16832": (16, 8, 32)}
_SHAPE = re.compile(r"^(\d+)x(\d+)x(\d+)$")
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Instruction:
    """``name``: opcode with its modifiers. ``operands``: the rest of the line."""

    address: int
    name: str
    operands: str

    @property
    def opcode(self) -> str:
        return self.name.split(".")[0]

    @property
    def kind(self) -> str:
        opcode = self.opcode
        return _CLASSES.get(opcode) or ("uniform" if opcode.startswith("U") or opcode == "R2UR" else "alu")


def instructions(sass: str) -> tuple[list[Instruction], dict[str, int]]:
    """All of them in order, and the address that every label stands before."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif part := _LINE.match(line):
            found.append(Instruction(int(part[1], 16), part[2], part[3]))
            labels |= dict.fromkeys(waiting, found[-1].address)
            waiting = []
    return found, labels


def main_loop(code: Sequence[Instruction], labels: dict[str, int]) -> list[Instruction]:
    """Of the loops without a loop in them, the one with the most matrix instructions, then with the most loads of
    global memory, then the longest. Empty if there is none."""
    spans = []
    for i in code:
        target = _BRANCH.search(i.operands) if i.opcode == "BRA" else None
        if target and labels.get(target[1], i.address) < i.address:
            spans.append((labels[target[1]], i.address))
    innermost = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    bodies = [[i for i in code if first <= i.address <= last] for first, last in innermost]

    def weight(body: list[Instruction]) -> tuple[int, int, int]:
        kinds = Counter(i.kind for i in body)
        return kinds["matrix"], kinds["global"] + kinds["async"], len(body)

    return max(bodies, key=weight, default=[])


def mix(code: Iterable[Instruction]) -> Mix:
    """Per warp: ``instructions``; by class their number; ``flops`` of matrix instructions; bytes of accesses to
    global memory (``global_bytes``; those to shared memory on the way, ``async_bytes``) and shared memory
    (``shared_bytes``); ``operand_bytes`` that matrix instructions of warp groups read from shared memory."""
    count: Counter[str] = Counter()
    for i in code:
        kind = i.kind
        count["instructions"] += 1
        count[kind] += 1
        if kind in ("global", "async", "shared"):
            count[f"{kind}_bytes"] += 32 * _lane_bytes(i)
        if kind == "matrix" and (shape := _shape(i.name)):
            m, n, k = shape
            warps = 4 if i.opcode in WARPGROUP else 1
            count["flops"] += 2 * m * n * k // warps
            count["operand_bytes"] += 2 * k * sum(_from_shared(i, m, n)) // warps
    return tuple(sorted(count.items()))


def _shape(name: str) -> tuple[int, int, int] | None:
    for modifier in name.split(".")[1:]:
        if modifier in _SHAPES:
            return _SHAPES[modifier]
        if found := _SHAPE.match(modifier):
            return int(found[1]), int(found[2]), int(found[3])
    return None


def _from_shared(i: Instruction, m: int, n: int) -> tuple[int, ...]:
    """Lines of operands that a matrix instruction of a warp group reads: a descriptor alone stands for both."""
    if i.opcode not in WARPGROUP:
        return ()
    first = i.operands.split(",")[1].strip()
    return (m, n) if first.startswith("gdesc") else (n,)


def _lane_bytes(i: Instruction) -> int:
    """Of one lane. LDSM and STSM move 8 x 8 matrices of 128 bytes, 1, 2 or 4 of them."""
    modifiers = i.name.split(".")[1:]
    if i.opcode in ("LDSM", "STSM"):
        return 4 * next((int(m) for m in reversed(modifiers) if m in ("1", "2", "4")), 1)
    return width(i.name)


def width(name: str) -> int:
    """Bytes of one lane's access."""
    opcode, *modifiers = name.split(".")
    if opcode.startswith("UTMA"):
        return 16
    return next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 4)
