"""The table of dims: it has every kernel, and what real programs launch."""

from __future__ import annotations

import pytest

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.backends.cuda import emit
from dsv2_compile.backends.cuda.lowering import lower
from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.compiler import CompileOptions, compile_program
from dsv2_compile.kernels.gpu import aot
from dsv2_compile.kernels.gpu.kernel import KERNELS
from dsv2_compile.kernels.gpu.shapes import shapes
from dsv2_compile.pipeline.cuda_plan import PROGRAMS, variants
from dsv2_compile.targets import target

H800 = target("h800")
OF_THE_CALL = {"ROWS_HINT", "PARTS", "OVERHEAD", "MAX_BATCH", "MAX_PAGES", "SPLIT_K"}
"""Dims that limits and the choice of a configuration fix, not the model."""


@pytest.mark.parametrize("model", ["v2", "lite"])
def test_every_kernel_has_dims_that_it_takes(model):
    found = shapes(PRESETS[model], rows=32)
    assert {s.kernel for s in found} == set(KERNELS)
    for shape in found:
        kernel = KERNELS[shape.kernel]
        work = aot.job(kernel, shape.dims, kernel.default(shape.dims, H800), "bf16", H800)
        names = [n for n, _ in (*work.signature, *work.constants)]
        assert sorted(names) == sorted(kernel.fn.arg_names), shape.what


def of_the_model(kernel, dims):
    return kernel, tuple(sorted((n, v) for n, v in dict(dims).items() if n not in OF_THE_CALL))


@pytest.mark.parametrize("model", ["tiny", "tiny-lite"])
def test_programs_launch_what_the_table_says(model):
    config, positions, batch = PRESETS[model], 1024, 32
    programs = {
        phase: compile_program(config, source, CompileOptions(H800, positions, {source: form}, check=False))[0]
        for phase, (source, form) in PROGRAMS.items()
    }
    drafts = {
        name: lower(programs[phase], phase, H800, "bf16", limits, positions // 64)
        for name, (phase, limits) in variants(batch, positions).items()
    }
    launched = {of_the_model(r.kernel, r.dims) for r in emit.requests(drafts.values())}
    known = {of_the_model(s.kernel, s.dims) for s in shapes(config, batch)}
    assert launched - known == set()
    assert {kernel for kernel, _ in known - launched} <= {"argmax", "sample", "split_k_sum", "split_k_sum_fp32"}
