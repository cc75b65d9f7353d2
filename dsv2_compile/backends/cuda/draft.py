"""A native program while it is being lowered: launches of kernels that are not compiled yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from dsv2_compile.backends.cuda.arena import Life, lay_out
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config, Dims, Kernel
from dsv2_compile.plan.dtypes import ITEM_BYTES
from dsv2_compile.plan.expr import Expr, Size, evaluate, symbol
from dsv2_compile.plan.plan import Argument, Buffer, Pointer
from dsv2_compile.targets import Target

ROWS, BATCH, CONTEXT, SLOTS = (symbol(n) for n in ("rows", "batch", "context", "slots"))
Choose = Callable[[Call, Target], Config]


@dataclass(frozen=True)
class Request:
    """What to compile. ``dims`` and ``config`` as sorted pairs; ``aligned``: arguments that are multiples of 16."""

    kernel: str
    dims: tuple[tuple[str, int | float | bool], ...]
    config: tuple[tuple[str, int], ...]
    dtype: str
    aligned: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """A matrix in a buffer: ``rows`` rows of ``width`` elements, ``stride`` elements apart, from ``offset`` on."""

    buffer: str
    rows: Size
    width: int
    stride: int
    dtype: str
    offset: Size = 0

    def columns(self, start: int, stop: int) -> View:
        return replace(self, offset=self.offset + start, width=stop - start)

    @property
    def height(self) -> int:
        """Rows of a weight."""
        assert isinstance(self.rows, int)
        return self.rows

    @property
    def contiguous(self) -> bool:
        return self.width == self.stride


@dataclass(frozen=True)
class DraftLaunch:
    request: Request
    grid: tuple[Size, Size, Size]
    args: tuple[Argument, ...]
    what: str
    sizes: Mapping[str, Size]


@dataclass
class Draft:
    """Buffers and launches so far. Buffers of the arena are laid out by `finish`, for at most ``limits``.
    Configurations are chosen for the sizes of ``workload``."""

    target: Target
    dtype: str
    limits: Mapping[str, int]
    workload: Mapping[str, int]
    choose: Choose
    buffers: dict[str, Buffer] = field(default_factory=dict)
    launches: list[DraftLaunch] = field(default_factory=list)
    arena_bytes: int = 0

    def buffer(self, name: str, place: str, dtype: str, *shape: Size) -> str:
        """Declare a buffer; declaring it again the same way is harmless."""
        made = Buffer(dtype, shape, place)
        if self.buffers.setdefault(name, made) != made:
            raise AssertionError(f"buffer {name} is {self.buffers[name]} and {made}")
        return name

    def temporary(self, hint: str, rows: Size, width: int, dtype: str = "") -> View:
        name, kind = f"{len(self.buffers)}.{hint}", dtype or self.dtype
        return View(self.buffer(name, "arena", kind, rows, width), rows, width, width, kind)

    def launch(
        self, kernel: Kernel, dims: Dims, sizes: Mapping[str, Size], what: str, **args: View | Pointer | None
    ) -> None:
        """Append a launch. Pointers by argument name, left out ones are null; scalars come from ``sizes``."""
        config = self.config(kernel, dims, sizes)
        bound: list[Argument] = []
        for name, kind in kernel.args.items():
            bound.append(self._pointer(args.pop(name, None)) if kind.startswith("*") else sizes[name])
        if args:
            raise AssertionError(f"kernel {kernel.name} has no argument {', '.join(args)}")
        aligned = tuple(n for n, a in zip(kernel.args, bound, strict=True) if _multiple(a) % 16 == 0)
        x, y, z = (*kernel.grid(dims, config, sizes), 1, 1)[:3]
        request = Request(kernel.name, tuple(sorted(dims.items())), tuple(sorted(config.items())), self.dtype, aligned)
        self.launches.append(DraftLaunch(request, (x, y, z), tuple(bound), what, dict(sizes)))

    def config(self, kernel: Kernel, dims: Dims, sizes: Mapping[str, Size]) -> Config:
        return self.choose(self.call(kernel, dims, sizes), self.target)

    def call(self, kernel: Kernel, dims: Dims, sizes: Mapping[str, Size]) -> Call:
        own = {name: evaluate(size, {**self.workload, "slots": 64}) for name, size in sizes.items()}
        return Call.of(kernel, dims, {**self.workload, **own}, self.dtype)

    def _pointer(self, value: View | Pointer | None) -> Pointer | None:
        if isinstance(value, View):
            return Pointer(value.buffer, value.offset * ITEM_BYTES[value.dtype])
        return value

    def finish(self) -> None:
        """Give every arena buffer its offset, for the largest sizes."""
        lives: dict[str, Life] = {}
        for at, launch in enumerate(self.launches):
            for arg in launch.args:
                if isinstance(arg, Pointer) and self.buffers[arg.buffer].place == "arena":
                    known = lives.get(arg.buffer)
                    nbytes = self.buffers[arg.buffer].nbytes(self.limits)
                    lives[arg.buffer] = Life(nbytes, known.first if known else at, at)
        offsets, self.arena_bytes = lay_out(lives)
        for name, buffer in list(self.buffers.items()):
            if buffer.place == "arena":
                if name in offsets:
                    self.buffers[name] = replace(buffer, offset=offsets[name])
                else:
                    del self.buffers[name]


def _multiple(value: Argument) -> int:
    """A number that the argument is a multiple of, whatever the symbols are; buffers start at multiples of 256."""
    if value is None:
        return 0
    if isinstance(value, Pointer):
        return math.gcd(_multiple(value.offset), 256)
    if isinstance(value, Expr):
        if value.op == "symbol":
            return 64 if value.args[0] == "slots" else 1
        a, b = map(_multiple, value.args)
        return a * b if value.op == "*" else math.gcd(a, b) if value.op in ("+", "-", "min") else 1
    return value


def kernel(name: str) -> Kernel:
    return KERNELS[name]
