"""What ``inspect`` knows of native engines: their launches and kernels, from the report that the build left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv2_compile.cli.format import printable, scaled, size, table
from dsv2_compile.engine import integrity, strictjson
from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.errors import IntegrityError

FILE = "launches.json"
MAX_BYTES = 64 << 20
MAX_ELEMENTS = 4_000_000
_COUNT = {"type": "integer", "minimum": 0}
_NUMBERS = {"type": "object", "additionalProperties": {"type": ["integer", "number", "boolean"]}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}


SCHEMA = _object(
    target={"type": "string"},
    programs={
        "type": "object",
        "additionalProperties": _object(
            sizes={"type": "object", "additionalProperties": _COUNT},
            launches={
                "type": "array",
                "items": _object(
                    what={"type": "string"},
                    kernel={"type": "string"},
                    grid={"type": "array", "items": _COUNT},
                    bytes=_COUNT,
                    flops=_COUNT,
                    seconds={"type": "number"},
                    bound={"enum": ["memory", "compute"]},
                ),
            },
        ),
    },
    kernels={
        "type": "array",
        "items": _object(
            kernel={"type": "string"},
            dims=_NUMBERS,
            config=_NUMBERS,
            registers=_COUNT,
            shared=_COUNT,
            stack=_COUNT,
            matrix={"type": "string"},
            blocks_per_sm=_COUNT,
            cubin_bytes=_COUNT,
        ),
    },
)


def read(root: Path, manifest: Manifest) -> dict[str, Any] | None:
    """The report of the engine at ``root``; None if it has none. IntegrityError if it is not what was built."""
    entry = manifest.files.get(FILE)
    if entry is None:
        return None
    problem, report = "it is not the file that was built", None
    if entry.bytes <= MAX_BYTES and integrity.file_entry(root / FILE) == entry:
        try:
            report = strictjson.loads((root / FILE).read_bytes(), MAX_BYTES, MAX_ELEMENTS)
            problem = next(strictjson.problems(report, SCHEMA, {}), "")
        except strictjson.JsonError as e:
            problem = str(e)
    if problem:
        raise IntegrityError(f"{FILE}: {problem}.", "Rebuild the engine with dsv2-compile build.")
    found: dict[str, Any] | None = report
    return found


def costs(report: Mapping[str, Any]) -> dict[str, Any]:
    """By program as programs.json has it: the sizes, and for operators the kernels, the dearest first."""
    return {
        name: {"sizes": p["sizes"], "operators": _by_kernel(p["launches"])} for name, p in report["programs"].items()
    }


def _by_kernel(launches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    totals: dict[str, dict[str, Any]] = {}
    for x in launches:
        row = totals.setdefault(x["kernel"], {"op": x["kernel"], "calls": 0, "bytes": 0, "flops": 0})
        row["calls"] += 1
        row["bytes"] += x["bytes"]
        row["flops"] += x["flops"]
    return sorted(totals.values(), key=lambda r: (-r["bytes"], r["op"]))


def text(target: str, programs: Mapping[str, Any], kernels: list[dict[str, Any]]) -> str:
    """The launches of ``programs`` in order, and what each kernel takes of the GPU."""
    parts = []
    for name, p in programs.items():
        at = ", ".join(f"{k} {v}" for k, v in p["sizes"].items())
        rows = [
            [
                x["kernel"],
                printable(x["what"])[:70],
                " x ".join(map(str, x["grid"])),
                size(x["bytes"]),
                scaled(x["flops"], "FLOP"),
                f"{x['seconds'] * 1e6:.2f} us",
                x["bound"],
            ]
            for x in p["launches"]
        ]
        total = sum(x["seconds"] for x in p["launches"])
        header = [f"launches of {printable(name)}", "what", "grid", "bytes", "work", f"bound on {target}", "by"]
        parts.append(table(header, rows, right=(2, 3, 4, 5)))
        parts.append(f"{len(rows)} launches, at {at}: at least {total * 1e3:.3f} ms by the bounds")
    rows = [
        [
            k["kernel"],
            " ".join(f"{n}={v}" for n, v in k["config"].items()),
            str(k["registers"]),
            size(k["shared"]),
            str(k["stack"]),
            k["matrix"],
            str(k["blocks_per_sm"]),
            size(k["cubin_bytes"]),
        ]
        for k in kernels
    ]
    header = ["kernel", "configuration", "registers", "shared", "spills", "matrix", "blocks/SM", "cubin"]
    return "\n\n".join([*parts, table(header, rows, right=(2, 3, 4, 6, 7))])
