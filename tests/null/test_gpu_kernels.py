"""Every GPU kernel, run by the interpreter on the host, against its reference in fp64."""

from __future__ import annotations

import pytest

from dsv2_compile.kernels.gpu.cases import CASES
from dsv2_compile.kernels.gpu.check import check, on_host
from dsv2_compile.targets import target

ALL = [pytest.param(case, id=f"{name}: {case.name}") for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("case", ALL)
def test_kernel_computes_its_reference(case, dtype):
    config = case.kernel.default(case.dims, target("h800"))
    for error in check(case, dtype, config, on_host):
        assert error.passed, error


def test_every_kernel_has_at_least_eight_cases():
    from dsv2_compile.kernels.gpu.kernel import KERNELS

    assert {name: len(CASES.get(name, ())) for name in KERNELS if len(CASES.get(name, ())) < 8} == {}
