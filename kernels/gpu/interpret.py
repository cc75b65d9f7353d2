"""Runs Triton kernels on host memory, with every access checked and half types rounded as a GPU rounds them.

Triton's interpreter is private API; this file is the only one that touches it, for the releases in `versions.py`. It
differs from running under TRITON_INTERPRET=1: no environment variable, so the same process still compiles;
bf16 products and conversions are right (the interpreter multiplies bf16 bit patterns as integers and
truncates); arithmetic on halves without an upcast is an error; so is a load or store outside the memory
that was given.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as ti
from triton.runtime.jit import JITFunction

from dsv2_compile.kernels.gpu.versions import check_version

_NARROW = {tl.bfloat16: ml_dtypes.bfloat16, tl.float8e4nv: ml_dtypes.float8_e4m3fn, tl.float8e5: ml_dtypes.float8_e5m2}
_LARGEST = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
_HALVES = (tl.bfloat16, tl.float16, *_LARGEST)


class AccessError(Exception):
    """A kernel read or wrote outside the memory it was given, or claimed an alignment that is not there."""


class Memory:
    """Address ranges that kernels may touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, address: int, nbytes: int) -> None:
        at = bisect.bisect(self._starts, address)
        self._starts.insert(at, address)
        self._ends.insert(at, address + nbytes)

    def check(self, addresses: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], width: int, what: str) -> None:
        """Every address under ``mask``, with ``width`` bytes from it on, lies inside one range."""
        used = addresses[np.broadcast_to(mask, addresses.shape)]
        if not used.size:
            return
        starts, ends = np.array(self._starts, np.uint64), np.array(self._ends, np.uint64)
        at = np.searchsorted(starts, used, "right").astype(np.int64) - 1
        bad = (at < 0) | (used + np.uint64(width) > ends[np.maximum(at, 0)])
        if bad.any():
            first = int(used[bad][0])
            near = bisect.bisect(self._starts, first) - 1
            where = f"{first - self._ends[near]} bytes past the end of a buffer" if near >= 0 else "before all buffers"
            raise AccessError(f"{what} of {width} bytes {where}, {int(bad.sum())} lanes")


def run(
    fn: JITFunction[Any],
    args: Mapping[str, tuple[str, int | float]],
    constants: Mapping[str, Any],
    grid: Sequence[int],
    memory: Memory,
    order: Sequence[int] | None = None,
) -> None:
    """Execute ``fn`` over ``grid``, one program after the other.

    ``args``: name -> (type, value), in the source's order; the value of a ``*`` type is an address.
    ``order``: in which to run the programs, numbers with x fastest; results must not depend on it.
    """
    check_version(triton.__version__)
    dims = (*grid, 1, 1)[:3]
    if 0 in dims:
        return
    programs = [(x, y, z) for z, y, x in itertools.product(*(range(n) for n in reversed(dims)))]
    with _patched(memory):
        body = ti.InterpretedFunction(fn.fn).rewrite()
        tensors = {name: _argument(kind, value) for name, (kind, value) in args.items()}
        ti.interpreter_builder.set_grid_dim(*dims)
        for at in order if order is not None else range(len(programs)):
            ti.interpreter_builder.set_grid_idx(*programs[at])
            try:
                body(**tensors, **constants)
            except AccessError as e:
                raise AccessError(f"{fn.__name__}, program {programs[at]}: {e}") from None


_SCALARS = {"i32": (tl.int32, np.int32), "i64": (tl.int64, np.int64), "fp32": (tl.float32, np.float32)}


def _argument(kind: str, value: int | float) -> Any:
    if kind.startswith("*"):
        pointer = tl.pointer_type(tl.str_to_ty(kind[1:], None))
        return tl.tensor(ti.TensorHandle(np.array([value], np.uint64), pointer), pointer)
    ours, theirs = _SCALARS[kind]
    return tl.tensor(ti.TensorHandle(np.array([value], theirs), ours), ours)


core = tl.core  # with `tl`, what the interpreter patches in the globals of the function it is given


def _scope() -> None:
    """Carries this module's globals."""


@contextlib.contextmanager
def _patched(memory: Memory) -> Iterator[None]:
    """Triton's language on numpy, with our arithmetic; everything as it was afterwards."""
    builder = type(ti.interpreter_builder)
    ours = {
        "create_dot": _dot,
        "cast_impl": _cast,
        "create_fp_to_fp": lambda self, src, dst, rounding: _cast(self, src, dst),
        "binary_op": _binary(builder.binary_op),
        "create_masked_load": _load(builder.create_masked_load, memory),
        "create_masked_store": _store(builder.create_masked_store, memory),
    }
    theirs = {name: builder.__dict__[name] for name in ours}
    call = JITFunction.__call__
    scope = ti._patch_lang(_scope)
    try:
        for name, method in ours.items():
            setattr(builder, name, method)
        JITFunction.__call__ = lambda self, *a, **k: ti.InterpretedFunction(self.fn).rewrite()(*a, **k)
        yield
    finally:
        JITFunction.__call__ = call
        for name, method in theirs.items():
            setattr(builder, name, method)
        scope.restore()


def _widen(handle: Any) -> np.ndarray[Any, Any]:
    """Values as numpy floats or ints."""
    narrow = _NARROW.get(handle.dtype.scalar)
    data: np.ndarray[Any, Any] = handle.data
    return data if narrow is None else data.view(narrow).astype(np.float32)


def _cast(self: Any, src: Any, dst_type: Any) -> Any:
    dst = dst_type.scalar
    values = _widen(src)
    if dst in _LARGEST:
        values = np.clip(values, -_LARGEST[dst], _LARGEST[dst])
    if dst in _NARROW:
        data = values.astype(np.float32).astype(_NARROW[dst]).view(ti._get_np_dtype(dst))
    else:
        with np.errstate(over="ignore"):
            data = values.astype(ti._get_np_dtype(dst))
    return ti.TensorHandle(data, dst)


def _dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    wide = d.data.dtype
    product = np.matmul(_widen(a).astype(wide), _widen(b).astype(wide))
    return ti.TensorHandle((product + d.data).astype(wide), d.dtype.scalar)


def _binary(original: Any) -> Any:
    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar in _HALVES and op not in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
            raise TypeError(f"{op.__name__} on {lhs.dtype.scalar} without an upcast: convert to float32 first")
        with np.errstate(all="ignore"):
            out = original(self, lhs, rhs, op)
        if op in _COMPARISONS:
            return ti.TensorHandle(out.data.astype(bool), tl.int1)
        return out

    return binary_op


_COMPARISONS = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)


def _load(original: Any, memory: Memory) -> Any:
    def create_masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        memory.check(ptrs.data, mask.data, _width(ptrs), "load")
        return original(self, ptrs, mask, other, *rest)

    return create_masked_load


def _store(original: Any, memory: Memory) -> Any:
    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.check(ptrs.data, mask.data, _width(ptrs), "store")
        return original(self, ptrs, value, mask, *rest)

    return create_masked_store


def _width(ptrs: Any) -> int:
    bits: int = ptrs.get_element_ty().primitive_bitwidth
    return max(1, bits // 8)
