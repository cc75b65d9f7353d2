"""What a GPU kernel is: Triton source, run-time arguments, constants, grid, search space, cost and meaning.

``dims`` are what the model fixes (widths, strides, flags): constants of the compiled kernel. ``sizes`` are
what a call fixes (rows, batch): ints, or expressions over a plan's symbols. ``config`` is what tuning picks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dsv2_compile.kernels.dialect import Cost
from dsv2_compile.kernels.gpu.work import Work
from dsv2_compile.plan.expr import Size
from dsv2_compile.targets import Target

Dims: TypeAlias = Mapping[str, int | float | bool]
Sizes: TypeAlias = Mapping[str, Size]
Config: TypeAlias = Mapping[str, int]
Grid: TypeAlias = tuple[Size, ...]

LAUNCH_OPTIONS = ("num_warps", "num_stages")
"""Knobs that are options of the compiler; all others are constants of the source."""

LONG_PREFILL = 4096
"""Rows that a default is made for where the dims do not say."""

INDIFFERENT = ("ROWS_HINT", "MAX_PAGES", "MAX_BATCH", "EPS", "SCALE")
"""Dims that do not decide which configuration is fast. ROWS_HINT is among the sizes as rows."""

KERNELS: dict[str, Kernel] = {}


@dataclass(frozen=True)
class Call:
    """A kernel as a program calls it, at the sizes that the program is made for: what a configuration is chosen for.
    ``dims`` and ``sizes`` as sorted pairs; ``sizes`` hold all that the cost needs. ``dtype``: of T."""

    kernel: str
    dims: tuple[tuple[str, int | float | bool], ...]
    sizes: tuple[tuple[str, int], ...]
    dtype: str

    @staticmethod
    def of(kernel: Kernel, dims: Dims, sizes: Mapping[str, int], dtype: str) -> Call:
        return Call(kernel.name, tuple(sorted(dims.items())), tuple(sorted(sizes.items())), dtype)


@dataclass(frozen=True)
class Kernel:
    """``args``: run-time arguments in the source's order, name -> type. Types: ``*T`` (a tensor in the model's
    dtype), ``*fp32``, ``*i32``, ``i32``. ``constants(dims, config)`` names every constexpr of the source.
    ``space``: knob -> values worth trying; ``default(dims, target)`` picks one value of each.
    ``reference(dims, sizes, **args)``: torch, in the dtype it is given, tensors by argument name -> the outputs
    by argument name; NaN in an output means that the kernel leaves that element alone. It finds the configuration
    among the dims, where that decides what is written.
    ``cost(dims, sizes)``: least traffic in bytes, at 2 bytes an element of T, and FLOP.
    ``roundings``: how often a value is rounded to T on its way to an output, where that is not once for one of T and
    never for another.
    ``shape``: the sizes that decide which configuration is fast. ``work(dims, config, sizes)``: see `Work`.
    ``then(dims, config)``: name and dims of a kernel that has to follow with this configuration, at the same sizes.
    """

    name: str
    fn: Any
    args: Mapping[str, str]
    outputs: tuple[str, ...]
    constants: Callable[[Dims, Config], dict[str, int | float | bool]]
    grid: Callable[[Dims, Config, Sizes], Grid]
    space: Mapping[str, tuple[int, ...]]
    default: Callable[[Dims, Target], Config]
    reference: Callable[..., dict[str, Any]]
    cost: Callable[[Dims, Mapping[str, int]], Cost]
    roundings: Mapping[str, int] = field(default_factory=dict)
    shape: tuple[str, ...] = ("rows",)
    work: Callable[[Dims, Config, Mapping[str, int]], Work] | None = None
    then: Callable[[Dims, Config], tuple[str, Dims] | None] = lambda dims, config: None

    def rounded(self, output: str) -> int:
        """How often a value of ``output`` was rounded to T."""
        return self.roundings.get(output, int(self.args[output] == "*T"))

    def options(self, config: Config) -> dict[str, int]:
        return {k: config[k] for k in LAUNCH_OPTIONS}


def register(kernel: Kernel) -> Kernel:
    """Add ``kernel`` to `KERNELS`. Raises ValueError if its arguments are not those of its source."""
    names = list(kernel.fn.arg_names)
    mine = list(kernel.args)
    if names[: len(mine)] != mine or kernel.name in KERNELS:
        raise ValueError(f"kernel {kernel.name}: declared {mine}, the source has {names}")
    KERNELS[kernel.name] = kernel
    return kernel


def rows_hint(dims: Dims) -> int:
    """How many rows a default should be fast for: the dim ROWS_HINT, which is no constant of the kernel."""
    return int(dims.get("ROWS_HINT", LONG_PREFILL))


def without_hint(dims: Dims) -> dict[str, int | float | bool]:
    return {name: value for name, value in dims.items() if name != "ROWS_HINT"}


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
