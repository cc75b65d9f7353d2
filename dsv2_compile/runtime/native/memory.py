"""How a native engine lies in the memory of a GPU, as far as that can be known without one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

from dsv2_compile.engine.placement import Placement
from dsv2_compile.errors import COPY_AGAIN, IntegrityError
from dsv2_compile.plan.dtypes import NAMES
from dsv2_compile.plan.expr import evaluate
from dsv2_compile.plan.plan import ALIGNMENT, Buffer, Plan, PlanProgram


def align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def packed(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets of areas of so many bytes, one after the other at multiples of `ALIGNMENT`, and the end of the last."""
    offsets, at = {}, 0
    for name, nbytes in sizes.items():
        offsets[name] = at
        at += align(nbytes)
    return offsets, at


def of_place(program: PlanProgram, place: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the program's buffers of one place, by name."""
    return {n: b.nbytes(sizes) for n, b in program.buffers.items() if b.place == place}


def shape(buffer: Buffer, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(d, sizes) for d in buffer.shape)


def cut(buffer: Buffer, asked: Mapping[str, int], made: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of an output that was made for larger sizes, which must then begin with what was asked for."""
    wanted, whole = shape(buffer, asked), shape(buffer, made)
    if wanted[1:] != whole[1:] or wanted[:1] > whole[:1]:
        raise ValueError(f"an output of shape {whole} cannot be cut to {wanted}")
    return wanted


def cache_buffer(plan: Plan) -> Buffer:
    """The KV cache [layers, slots, C]; its declaration is the same in all programs."""
    found = {b for p in plan.programs.values() for n, b in p.buffers.items() if b.place == "cache"}
    if len(found) != 1 or len(next(iter(found)).shape) != 3:
        raise IntegrityError(
            f"The plan has {len(found)} kinds of KV cache.", "Rebuild the engine with this version of dsv2-compile."
        )
    return found.pop()


@dataclass(frozen=True)
class Weights:
    """``offsets``: of every weight of the plan from the start of one block. ``reads``: what to copy where, in the
    order in which it is stored; two names of one placement share their bytes."""

    offsets: Mapping[str, int]
    reads: tuple[tuple[Placement, int], ...]
    nbytes: int


def weight_layout(plan: Plan, weights: Mapping[str, Placement]) -> Weights:
    """IntegrityError if the engine does not have the plan's weights, or has them in other types or sizes."""
    buffers = {n: b for p in plan.programs.values() for n, b in p.buffers.items() if b.place == "weight"}
    problems = [p for n, b in buffers.items() if (p := _mismatch(b, weights.get(n)))]
    if problems:
        raise IntegrityError(
            f"The engine lacks {len(problems)} of the {len(buffers)} weights of its plan.",
            COPY_AGAIN,
            [f"{n}: {p}" for n, b in buffers.items() if (p := _mismatch(b, weights.get(n)))][:20],
        )
    placed = sorted({weights[n] for n in buffers}, key=lambda w: (w.file, w.offset))
    offsets, nbytes = packed({str(i): w.nbytes for i, w in enumerate(placed)})
    where = {w: offsets[str(i)] for i, w in enumerate(placed)}
    return Weights({n: where[weights[n]] for n in buffers}, tuple(where.items()), nbytes)


def _mismatch(buffer: Buffer, found: Placement | None) -> str:
    if found is None:
        return "missing"
    if found.dtype != NAMES[buffer.dtype] or found.nbytes != buffer.nbytes({}):
        return f"{found.dtype} of {found.nbytes} bytes, the plan has {buffer.dtype} of {buffer.nbytes({})}"
    return ""


@dataclass(frozen=True)
class Needs:
    """Bytes of GPU memory by purpose."""

    weights: int
    cache: int
    arena: int
    inputs: int
    outputs: int
    scratch: int

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def __str__(self) -> str:
        gb = 1e9
        return (
            f"{self.total / gb:.2f} GB (weights {self.weights / gb:.2f}, cache {self.cache / gb:.2f}, "
            f"arena {self.arena / gb:.2f}, other {(self.inputs + self.outputs + self.scratch) / gb:.2f})"
        )


def needs(plan: Plan, weights: Weights, slots: int, scratch: int) -> Needs:
    """``slots``: rows of the cache. ``scratch``: bytes of it that the largest launch takes."""

    def largest(place: str) -> int:
        return _most(packed(of_place(p, place, {**p.limits, "slots": slots}))[1] for p in plan.programs.values())

    return Needs(
        weights=weights.nbytes,
        cache=align(cache_buffer(plan).nbytes({"slots": slots})),
        arena=align(_most(p.arena_bytes for p in plan.programs.values())),
        inputs=largest("input"),
        outputs=largest("output"),
        scratch=align(scratch),
    )


def _most(values: Iterable[int]) -> int:
    return max(values, default=0)
