"""Wrong kernels: edits of the kernels' sources, each wrong with some configurations and shapes and right with others.

A plant is one edit of one kernel under one configuration at the dims of one call, where the edit matters. It goes
through what measured tuning checks a configuration with: the call itself, then held-out calls of the same dims, each
in several orders of the programs. Kernels run on the host, by the interpreter.
"""

from __future__ import annotations

import inspect
import linecache
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.kernels.gpu.cases import case_for, follower, held_out
from dsv2_compile.kernels.gpu.check import Case, Violation, check, in_any_order
from dsv2_compile.kernels.gpu.interpret import AccessError
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config, Kernel
from dsv2_compile.targets import target
from tests.planted_calls import CALLS
from tests.planted_edits import EDITS
from tests.planted_edits.core import Edit

H800 = target("h800")
LITTLE = 3e6
"""FLOP of a held-out case."""
ACCEPTED, NUMBERS, ADDRESS, ORDER, RAISED = "accepted", "numbers", "address", "order", "raised"


@dataclass(frozen=True)
class Plant:
    edit: Edit
    call: Call
    config: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        knobs = " ".join(f"{k}={v}" for k, v in self.config if k not in ("num_warps", "num_stages"))
        return f"{self.call.kernel}: {self.edit.name}, {knobs}, dims {list(CALLS[self.call.kernel]).index(self.call)}"


def calls() -> Iterator[tuple[Call, Config]]:
    for found in CALLS.values():
        for call, configs in found.items():
            yield from ((call, {"num_warps": 4, "num_stages": 1, **config}) for config in configs)


def plants(most: int | None = None) -> list[Plant]:
    """Every edit with every call and configuration in which it matters; ``most`` of a kernel and an edit, from the
    first to the last of them, if given."""
    found: dict[tuple[str, Edit], list[Plant]] = {}
    for call, config in calls():
        names = _names(call, config)
        for edit in EDITS:
            if call.kernel in edit.kernels and edit.live(names):
                plant = Plant(edit, call, tuple(sorted(config.items())))
                found.setdefault((call.kernel, edit), []).append(plant)
    return [p for some in found.values() for p in _spread(some, most or len(some))]


def _spread(found: Sequence[Plant], most: int) -> Sequence[Plant]:
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / max(most - 1, 1))] for i in range(most)]


def _names(call: Call, config: Config) -> types.SimpleNamespace:
    """Dims, constants of the compiled kernel and knobs, by name."""
    dims = dict(call.dims)
    return types.SimpleNamespace(**{**dims, **KERNELS[call.kernel].constants(dims, config), **config})


@cache
def planted(kernel: str, edit: Edit | None) -> Kernel:
    """``kernel`` from its source with ``edit`` made in it."""
    right = KERNELS[kernel]
    if edit is None:
        return right
    source = inspect.getsource(inspect.getmodule(right.fn.fn))
    for function, old, new in edit.changes:
        before, body, after = _parts(source, function)
        if old not in body:
            raise AssertionError(f"{edit.name}: {function} has no {old!r}")
        source = before + body.replace(old, new) + after
    file = f"<{kernel}: {edit.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = types.ModuleType(f"planted_{kernel}")
    exec(compile(source, file, "exec"), module.__dict__)
    return replace(right, fn=getattr(module, right.fn.__name__))


def _parts(source: str, function: str) -> tuple[str, str, str]:
    """Around and of one function of a module."""
    start = source.index(f"\ndef {function}(") + 1
    end = source.find("\n\n\n", start)
    end = len(source) if end < 0 else end
    return source[:start], source[start:end], source[end:]


@cache
def cases(call: Call, config: tuple[tuple[str, int], ...]) -> Sequence[Case]:
    return [case_for(call), *held_out(call, dict(config), LITTLE)]


def verdict(kernel: Kernel, call: Call, config: Config) -> tuple[str, int, str]:
    """How a configuration of ``kernel`` comes out, the number of the case that decided it, 0 for the call itself, and
    why."""
    after = follower(call, config)
    then = None if after is None else KERNELS[after.kernel].default(dict(after.dims), H800)
    for number, case in enumerate(cases(call, tuple(sorted(config.items())))):
        try:
            errors = check(replace(case, kernel=kernel), call.dtype, config, in_any_order, number, then)
        except AccessError as e:
            return ADDRESS, number, str(e)
        except Violation as e:
            return ORDER, number, str(e)
        except Exception as e:
            return RAISED, number, f"{type(e).__name__}: {e}"
        if wrong := [e for e in errors if not e.passed]:
            return NUMBERS, number, str(wrong[0])
    return ACCEPTED, len(cases(call, tuple(sorted(config.items())))), ""


def judged(plant: Plant) -> tuple[str, int, str]:
    return verdict(planted(plant.call.kernel, plant.edit), plant.call, dict(plant.config))
