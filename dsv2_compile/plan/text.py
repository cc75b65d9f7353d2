"""plan.json: a plan as bytes, and back through every check."""

from __future__ import annotations

import json
from typing import Any

from dsv2_compile.engine import strictjson
from dsv2_compile.errors import COPY_AGAIN, IncompatibleError, IntegrityError
from dsv2_compile.plan import expr
from dsv2_compile.plan.check import problems
from dsv2_compile.plan.plan import (
    FILE,
    SCHEMA,
    SYMBOLS,
    Argument,
    Buffer,
    KernelEntry,
    Launch,
    Plan,
    PlanProgram,
    Pointer,
)

MAX_BYTES = 64 << 20
MAX_ELEMENTS = 4_000_000


def to_bytes(plan: Plan) -> bytes:
    """The file. Raises AssertionError for a plan that `parse` would refuse: none such is ever written."""
    found = list(problems(plan))
    assert not found, found[:5]
    data = {
        "schema": SCHEMA,
        "target": plan.target,
        "capability": plan.capability,
        "dtype": plan.dtype,
        "page": plan.page,
        "pages": plan.pages,
        "kernels": [{**vars(k), "constants": dict(k.constants)} for k in plan.kernels],
        "programs": {name: _program_json(p) for name, p in plan.programs.items()},
    }
    return (json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _program_json(program: PlanProgram) -> dict[str, Any]:
    names = {name: i for i, name in enumerate(program.buffers)}

    def argument(arg: Argument) -> Any:
        if isinstance(arg, Pointer):
            return {"b": names[arg.buffer], "o": expr.to_json(arg.offset)}
        return None if arg is None else expr.to_json(arg)

    return {
        "phase": program.phase,
        "limits": dict(program.limits),
        "arena_bytes": program.arena_bytes,
        "buffers": [
            [name, b.dtype, b.place, b.offset, [expr.to_json(d) for d in b.shape]]
            for name, b in program.buffers.items()
        ],
        "launches": [
            [x.kernel, [expr.to_json(g) for g in x.grid], [argument(a) for a in x.args], x.what]
            for x in program.launches
        ],
    }


def parse(data: bytes) -> Plan:
    """The plan. IntegrityError with all problems if it is malformed, IncompatibleError if of another version."""
    try:
        raw = strictjson.loads(data, MAX_BYTES, MAX_ELEMENTS)
        version = raw.get("schema") if isinstance(raw, dict) else None
        if version != SCHEMA and isinstance(version, str) and version.startswith("dsv2/plan/"):
            raise IncompatibleError(
                f"{FILE} has schema {version[:40]}, this program reads {SCHEMA}.",
                "Rebuild the engine with this version of dsv2-compile, or use the version that built it.",
            )
        plan = _plan(raw)
        found = list(problems(plan))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as e:
        raise IntegrityError(f"{FILE} is malformed: {e or type(e).__name__}.", COPY_AGAIN) from None
    if found:
        raise IntegrityError(f"{FILE} is malformed: {len(found)} problems.", COPY_AGAIN, found[:20])
    return plan


def _plan(raw: dict[str, Any]) -> Plan:
    fields = {k: _typed(raw[k], t, k) for k, t in _PLAN.items()}
    if set(raw) != {*_PLAN, "schema", "kernels", "programs"}:
        raise ValueError(f"keys {sorted(raw)}")
    if raw["schema"] != SCHEMA:
        raise ValueError("unknown schema")
    kernels = tuple(map(_kernel, _list(raw["kernels"], "kernels")))
    return Plan(**fields, kernels=kernels, programs={n: _program(p) for n, p in raw["programs"].items()})


_PLAN: dict[str, type] = {"target": str, "capability": str, "dtype": str, "page": int, "pages": int}
_KERNEL: dict[str, type] = {
    "kernel": str,
    "cubin": str,
    "symbol": str,
    "warps": int,
    "shared": int,
    "scratch": int,
    "scratch_align": int,
}


def _typed(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{name} is not {kind.__name__}")
    return value


def _list(value: Any, name: str) -> list[Any]:
    """Not whatever else can be iterated over: a string, an object's keys."""
    found: list[Any] = _typed(value, list, name)
    return found


def _kernel(raw: dict[str, Any]) -> KernelEntry:
    if set(raw) != {*_KERNEL, "args", "aligned", "constants"}:
        raise ValueError(f"keys of a kernel: {sorted(raw)}")
    constants = {_typed(k, str, "constant"): v for k, v in raw["constants"].items()}
    if any(type(v) not in (int, float, bool) for v in constants.values()):
        raise ValueError("a constant is no number")
    return KernelEntry(
        **{k: _typed(raw[k], t, k) for k, t in _KERNEL.items()},
        args=tuple(_typed(a, str, "argument type") for a in _list(raw["args"], "args")),
        aligned=tuple(_typed(a, bool, "alignment") for a in _list(raw["aligned"], "aligned")),
        constants=constants,
    )


def _program(raw: dict[str, Any]) -> PlanProgram:
    if set(raw) != {"phase", "limits", "arena_bytes", "buffers", "launches"}:
        raise ValueError(f"keys of a program: {sorted(raw)}")
    buffers: dict[str, Buffer] = {}
    for name, dtype, place, offset, shape in _list(raw["buffers"], "buffers"):
        made = Buffer(
            _typed(dtype, str, "dtype"),
            tuple(expr.from_json(d, SYMBOLS) for d in _list(shape, "shape")),
            _typed(place, str, "place"),
            _typed(offset, int, "offset"),
        )
        if buffers.setdefault(_typed(name, str, "buffer"), made) is not made:
            raise ValueError(f"buffer {name} twice")
    names = list(buffers)

    def argument(data: Any) -> Argument:
        if isinstance(data, dict):
            if set(data) != {"b", "o"} or not 0 <= _typed(data["b"], int, "buffer") < len(names):
                raise ValueError("a pointer to no buffer")
            return Pointer(names[data["b"]], expr.from_json(data["o"], SYMBOLS))
        return None if data is None else expr.from_json(data, SYMBOLS)

    launches = []
    for kernel, grid, args, what in _list(raw["launches"], "launches"):
        x, y, z = (expr.from_json(g, SYMBOLS) for g in _list(grid, "grid"))
        bound = tuple(map(argument, _list(args, "arguments")))
        launches.append(Launch(_typed(kernel, int, "kernel"), (x, y, z), bound, _typed(what, str, "what")))
    limits = {_typed(k, str, "limit"): _typed(v, int, "limit") for k, v in raw["limits"].items()}
    arena = _typed(raw["arena_bytes"], int, "arena_bytes")
    return PlanProgram(_typed(raw["phase"], str, "phase"), limits, buffers, tuple(launches), arena)
