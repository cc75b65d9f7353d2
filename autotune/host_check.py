"""A configuration's answers without a GPU: the kernel's source, through the interpreter, against fp64."""

from __future__ import annotations

from functools import cache

from dsv2_compile.kernels.gpu.cases import CASES
from dsv2_compile.kernels.gpu.check import check, on_host
from dsv2_compile.kernels.gpu.kernel import Config

CHECKED = 4
"""Of a kernel's cases, evenly from all: a few seconds a configuration."""
NAME = f"{CHECKED} small calls on the host"


def wrong_on_host(kernel: str, config: Config, dtype: str) -> str:
    """What is wrong with the outputs of ``kernel`` with ``config``; empty if they are right.

    The calls are small ones of other dims than a model's, which the compiled kernel is not for: it is the source that
    is checked, and what the configuration makes of it."""
    return _wrong(kernel, tuple(sorted(config.items())), dtype)


@cache
def _wrong(kernel: str, config: tuple[tuple[str, int], ...], dtype: str) -> str:
    cases = CASES[kernel]
    for case in cases[:: max(1, len(cases) // CHECKED)][:CHECKED]:
        try:
            failed = [e for e in check(case, dtype, dict(config), on_host) if not e.passed]
        except Exception as e:  # an access out of bounds among them
            return f"{case.name}: {type(e).__name__}: {e}"
        if failed:
            return f"{case.name}: {failed[0].output} is off by {failed[0].l2:.1e}, {failed[0].mistakes} mistakes"
    return ""
