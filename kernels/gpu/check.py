"""A kernel against its reference in fp64: one mechanism for the host interpreter, a GPU and the tuner.

Inputs are random and rounded to the kernel's dtype, outputs start poisoned, and the reference sees the
rounded inputs. An element that the reference calls NaN must still be poison afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import torch

from dsv2_compile.kernels.gpu.kernel import KERNELS, Config, Dims, Kernel
from dsv2_compile.plan.expr import evaluate

Tensors: TypeAlias = dict[str, torch.Tensor | None]
Launch: TypeAlias = Callable[[Kernel, Dims, Config, Mapping[str, int], str, Tensors], None]
"""launch(kernel, dims, config, sizes, dtype, tensors): run it, tensors in place; None stands for a null pointer.
Raises `Violation`."""
Outputs: TypeAlias = Callable[[Config], Mapping[str, tuple[int, ...]]]
"""outputs(config): shape by argument name of what a kernel writes with a configuration, but for inputs that it
updates in place."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "i32": torch.int32}
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-24}
"""Largest relative error of rounding to a dtype."""
POISON = -(1 << 31)
"""In integer outputs; in float ones it is NaN."""
SHORT = 1e9
"""FLOP that a host does in fp64 in no time."""
RUN = 16
"""Neighbouring values that are judged together."""
LARGE = 1 << 28
"""From so many elements on, a reference gets a tensor as it is stored: in fp64 it would take gigabytes, the experts of
a layer of V2 more than a machine has. Weights and caches alone are so large."""
PERIOD = (1 << 22) - 3
"""After so many elements `normal` repeats itself: as random as a check needs, and made in no time. It is a prime, so
that no stride is a multiple of it."""


class Violation(Exception):
    """A kernel wrote where it must not, or gave other bits for the same inputs."""


def in_fp64(kernel: Kernel, dims: Dims, sizes: Mapping[str, int], stored: Tensors) -> Mapping[str, Any]:
    """What ``kernel`` should make of ``stored``, by its reference: on the host, or where it takes long there and torch
    has a GPU with room for it, on that."""
    if kernel.cost(dims, sizes).flops > SHORT and torch.cuda.is_available():
        try:
            with torch.device("cuda"):
                return _referred(kernel, dims, sizes, stored, "cuda")
        except torch.OutOfMemoryError:
            pass
        finally:
            torch.cuda.empty_cache()
    return _referred(kernel, dims, sizes, stored, "cpu")


def _referred(kernel: Kernel, dims: Dims, sizes: Mapping[str, int], stored: Tensors, where: str) -> Mapping[str, Any]:
    found = kernel.reference(dims, sizes, **{n: _exact(t, where) for n, t in stored.items()})
    return {n: None if t is None else t.cpu() for n, t in found.items()}


@dataclass(frozen=True)
class Case:
    """One call. ``inputs(generator)``: floats or int32 tensors by argument name, None for a null pointer.
    ``expected``: what comes of them as they are stored. ``decided``: sizes that the inputs decide, for the cost."""

    name: str
    kernel: Kernel
    dims: Dims
    sizes: Mapping[str, int]
    inputs: Callable[[torch.Generator], Tensors]
    outputs: Outputs
    expected: Callable[[Kernel, Dims, Mapping[str, int], Tensors], Mapping[str, Any]] = in_fp64
    decided: Callable[[Tensors], Mapping[str, int]] = lambda given: {}


def always(**shapes: tuple[int, ...]) -> Outputs:
    """The same outputs with every configuration."""
    return lambda config: shapes


@dataclass(frozen=True)
class Error:
    """``l2``: relative to the reference's norm. ``local``: the worst of those of `RUN` values in a row, as an error of
    one head or column is small among all. ``largest``: relative to its largest value. ``mistakes``: integers that
    differ, and poison that is missing or should not be there."""

    output: str
    l2: float = 0.0
    local: float = 0.0
    largest: float = 0.0
    mistakes: int = 0
    limit_l2: float = 0.0
    limit_local: float = 0.0
    limit_largest: float = 0.0

    @property
    def passed(self) -> bool:
        if self.mistakes or self.l2 > self.limit_l2:
            return False
        return self.local <= self.limit_local and self.largest <= self.limit_largest

    def __str__(self) -> str:
        errors = ((n, getattr(self, n), getattr(self, f"limit_{n}")) for n in ("l2", "local", "largest"))
        text = ", ".join(f"{name} {value:.2e} of {limit:.2e}" for name, value, limit in errors)
        return f"{self.output}: {text}, {self.mistakes} mistakes"


def check(
    case: Case, dtype: str, config: Config, launch: Launch, seed: int = 0, then: Config | None = None
) -> list[Error]:
    """Run ``case`` once and compare every output.

    ``then``: with what the kernel runs that has to follow under ``config``, if one does; what it makes of the outputs
    is compared too. Without it, the kernel is judged alone.
    """
    kernel, given = case.kernel, _stored(case, dtype, seed)
    expected = case.expected(kernel, {**case.dims, **config}, case.sizes, given)
    tensors = _with_outputs(case, dtype, config, given)
    launch(kernel, case.dims, config, case.sizes, dtype, tensors)
    errors = _errors(kernel, tensors, expected, dtype)
    following = kernel.then(case.dims, config)
    if following is None or then is None:
        return errors
    last, dims = KERNELS[following[0]], following[1]
    passed = {n: t for n, t in expected.items() if n in last.args and n not in last.outputs}
    expected = in_fp64(last, {**dims, **then}, case.sizes, passed)
    tensors = {n: tensors[n] for n in passed} | {n: _poison(last, n, t.shape, dtype) for n, t in expected.items()}
    launch(last, dims, then, case.sizes, dtype, tensors)
    return errors + _errors(last, tensors, expected, dtype)


def prepared(case: Case, dtype: str, config: Config, seed: int = 0) -> Tensors:
    """Every pointer of the call: inputs as they are stored, outputs poisoned, None for a null pointer."""
    return _with_outputs(case, dtype, config, _stored(case, dtype, seed))


def _stored(case: Case, dtype: str, seed: int) -> Tensors:
    """Inputs, in the kernel's dtypes."""
    given = case.inputs(torch.Generator().manual_seed(seed))
    kinds = {n: DTYPES[_kind(kind, dtype)] for n, kind in case.kernel.args.items()}
    updated = case.kernel.outputs
    return {n: None if t is None else t.to(kinds[n], copy=n in updated).contiguous() for n, t in given.items()}


def _with_outputs(case: Case, dtype: str, config: Config, given: Tensors) -> Tensors:
    tensors = {n: given.get(n) for n, kind in case.kernel.args.items() if kind.startswith("*")}
    written = {n: _poison(case.kernel, n, shape, dtype) for n, shape in case.outputs(config).items()}
    return {**tensors, **written}


def _poison(kernel: Kernel, name: str, shape: Sequence[int], dtype: str) -> torch.Tensor:
    kind = _kind(kernel.args[name], dtype)
    return torch.full(tuple(shape), POISON if kind == "i32" else float("nan"), dtype=DTYPES[kind])


def _exact(tensor: torch.Tensor | None, where: str) -> torch.Tensor | None:
    """What the reference sees, which may not change when the kernel runs."""
    if tensor is None:
        return None
    moved = tensor.to(where)
    if tensor.numel() >= LARGE:
        return moved
    return moved.double() if tensor.is_floating_point() else moved.clone()


def _errors(kernel: Kernel, tensors: Tensors, expected: Mapping[str, torch.Tensor | None], dtype: str) -> list[Error]:
    return [
        _compare(kernel, name, tensors[name], value, dtype) for name, value in expected.items() if value is not None
    ]


def _kind(declared: str, dtype: str) -> str:
    return dtype if declared == "*T" else declared.removeprefix("*")


def _compare(kernel: Kernel, name: str, actual: torch.Tensor | None, expected: torch.Tensor, dtype: str) -> Error:
    if actual is None or actual.shape != expected.shape:
        raise ValueError(f"{kernel.name}: output {name} is {expected.shape} by the reference, the case says otherwise")
    if not expected.is_floating_point():
        return Error(name, mistakes=int((actual != expected).sum()))
    got, untouched = actual.double(), expected.isnan()
    mistakes = int((got.isnan() != untouched).sum())
    both = ~untouched & ~got.isnan()
    difference, size = (got - expected)[both], expected[both]
    if not size.numel():
        return Error(name, mistakes=mistakes)
    largest = float(size.abs().max()) or 1.0
    unit = max(UNIT[dtype] * kernel.rounded(name) ** 0.5, UNIT["fp32"] * 64)
    off, norm = _norms(difference), _norms(size).clamp(min=UNIT["fp32"] * largest)
    return Error(
        name,
        float(difference.norm()) / (float(size.norm()) or 1.0),
        float((off / norm).max()),
        float(difference.abs().max()) / largest,
        mistakes,
        unit,
        2 * unit,
        4 * unit,
    )


def _norms(values: torch.Tensor) -> torch.Tensor:
    """Of every `RUN` values; where some are left, of the last `RUN` too: a few alone may happen to be near zero."""
    whole = values[: len(values) // RUN * RUN].view(-1, RUN)
    norms: torch.Tensor = torch.cat([whole.norm(dim=1), values[-RUN:].norm()[None]])
    return norms


def on_host(
    kernel: Kernel,
    dims: Dims,
    config: Config,
    sizes: Mapping[str, int],
    dtype: str,
    tensors: Tensors,
    order: Sequence[int] | None = None,
) -> None:
    """`Launch` through the interpreter; only the tensors' own memory may be touched."""
    from dsv2_compile.kernels.gpu.interpret import Memory, run

    memory, args = Memory(), dict[str, tuple[str, int | float]]()
    for name, declared in kernel.args.items():
        if not declared.startswith("*"):
            args[name] = (declared, sizes[name])
            continue
        tensor, kind = tensors[name], f"*{_kind(declared, dtype)}"
        args[name] = (kind, 0 if tensor is None else tensor.data_ptr())
        if tensor is not None:
            memory.add(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    grid = [evaluate(g, {}) for g in kernel.grid(dims, config, sizes)]
    run(kernel.fn, args, kernel.constants(dims, config), grid, memory, order)


def in_any_order(
    kernel: Kernel,
    dims: Dims,
    config: Config,
    sizes: Mapping[str, int],
    dtype: str,
    tensors: Tensors,
) -> None:
    """`on_host`, forwards and backwards: the same bits, and no input changed. Wherever one program writes what another
    one writes or reads, one of the two comes first in either."""
    held = {n: t for n, t in tensors.items() if t is not None}
    given, first = {n: t.clone() for n, t in held.items()}, dict[str, torch.Tensor]()
    count = prod(int(evaluate(g, {})) for g in kernel.grid(dims, config, sizes))
    for order in (range(count), range(count)[::-1])[: min(count, 2)]:
        for name, tensor in held.items():
            tensor.copy_(given[name])
        on_host(kernel, dims, config, sizes, dtype, tensors, order)
        if changed := [n for n in held if n not in kernel.outputs and not _same(held[n], given[n])]:
            raise Violation(f"{', '.join(changed)} changed, which is no output")
        if other := [n for n in first if not _same(held[n], first[n])]:
            raise Violation(f"{', '.join(other)} depends on the order of programs")
        first = first or {n: held[n].clone() for n in kernel.outputs if n in held}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit."""
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """[*shape] from a normal distribution, in float64; if there are more than `PERIOD`, in bf16."""
    count = prod(shape)
    some = torch.randn(min(count, PERIOD), generator=generator, dtype=torch.float64) * scale
    found = some if count <= PERIOD else some.bfloat16().repeat(-(-count // PERIOD))[:count]
    return found.view(shape)


def weights(generator: torch.Generator, *shape: int, scale: float) -> torch.Tensor:
    """`normal`, but large ones are the same tensor for any generator: nobody may write it."""
    return _kept_weights(shape, scale) if prod(shape) > PERIOD else normal(generator, *shape, scale=scale)


@lru_cache(maxsize=1)
def _kept_weights(shape: tuple[int, ...], scale: float) -> torch.Tensor:
    return normal(torch.Generator().manual_seed(0), *shape, scale=scale)
