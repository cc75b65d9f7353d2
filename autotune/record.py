"""A tuning record: for a kernel as it is called on a target, the configuration that was found and what it rests on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.kernels.gpu.kernel import INDIFFERENT, KERNELS, Call, Config
from dsv2_compile.plan.expr import evaluate

SCHEMA = "dsv2/tuning/1"
MEASURED, PREDICTED = "measured", "predicted"
PROVENANCES = (MEASURED, PREDICTED)
"""The better one first."""

Pairs = tuple[tuple[str, int | float | bool], ...]


@dataclass(frozen=True)
class Key:
    """What a record is for. ``source``: digest of the kernel's source with all it calls. ``dims`` without those that
    do not decide, ``sizes`` of `Kernel.shape`, each the nearest power of two. ``dtype``: of T, in Triton's names."""

    kernel: str
    source: str
    target: str
    dtype: str
    dims: Pairs
    sizes: tuple[tuple[str, int], ...]
    triton: str
    ptxas: str


@dataclass(frozen=True)
class Record:
    """``microseconds``, ``default_microseconds``: of the configuration and of the kernel's default at the same sizes
    (that of the configuration again where the default cannot be used), measured on ``device`` or, where that is empty,
    predicted by the model of version ``model``. ``bound``: least microseconds by the target's roofline. ``launch``:
    digest of what the configuration means to the compiler and the grid. ``checks``: what its outputs passed.
    ``trials``: configurations that were judged. ``created``: seconds since 1970, UTC."""

    key: Key
    config: tuple[tuple[str, int], ...]
    provenance: str
    microseconds: float
    default_microseconds: float
    bound: float
    launch: str
    model: int
    device: str
    checks: tuple[str, ...]
    trials: int
    created: int

    def to_json(self) -> dict[str, Any]:
        rest = {**vars(self), "key": key_json(self.key), "config": dict(self.config), "checks": list(self.checks)}
        return {"schema": SCHEMA, **rest}


def key_json(key: Key) -> dict[str, Any]:
    return {**vars(key), "dims": dict(key.dims), "sizes": dict(key.sizes)}


def key_of(call: Call, target: str, triton: str, ptxas: str) -> Key:
    kernel = KERNELS[call.kernel]
    sizes = dict(call.sizes)
    return Key(
        kernel=call.kernel,
        source=kernel.fn.cache_key,
        target=target,
        dtype=call.dtype,
        dims=tuple((n, v) for n, v in call.dims if n not in INDIFFERENT),
        sizes=tuple(sorted((n, nearest_power_of_2(sizes[n])) for n in kernel.shape)),
        triton=triton,
        ptxas=ptxas,
    )


def nearest_power_of_2(n: int) -> int:
    """The nearest by ratio; at least 1."""
    low = 1 << max(n.bit_length() - 1, 0)
    return low if n * n <= 2 * low * low else 2 * low


def launch_digest(call: Call | Key, config: Config) -> str:
    """What ``config`` comes to at the sizes of the call's key: constants, options and grid. Another digest for the
    same key says that the meaning of a configuration has changed outside of the kernel's source."""
    kernel, sizes = KERNELS[call.kernel], dict(call.sizes)
    dims = {**dict(call.dims), **dict.fromkeys(INDIFFERENT, 1)}
    grid = kernel.grid(dims, config, {n: nearest_power_of_2(sizes[n]) for n in kernel.shape})
    constants = {k: v for k, v in kernel.constants(dims, config).items() if k not in INDIFFERENT}
    meaning = json.dumps([constants, kernel.options(config), [evaluate(g, {}) for g in grid]], sort_keys=True)
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def ratio(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """How far apart sizes of the same names are: the largest quotient of two of one name."""
    return max((max(a[n], b[n]) / max(min(a[n], b[n]), 1) for n in a), default=1.0)
