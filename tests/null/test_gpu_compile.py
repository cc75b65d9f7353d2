"""The compile stage: order of the results, what cannot be had, versions."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from dsv2_compile.backends.cuda.build_cache import BuildCache
from dsv2_compile.backends.cuda.compile import compile_all, request
from dsv2_compile.backends.cuda.resources import row
from dsv2_compile.backends.cuda.toolchain import check_version
from dsv2_compile.errors import IncompatibleError, UsageError
from dsv2_compile.kernels.gpu import aot
from dsv2_compile.kernels.gpu.norm import RMS_NORM
from dsv2_compile.targets import target
from tests.compiling import A100, H800, compile_fakes, jobs_asked
from tests.gpu_fakes import DOUBLE, MATMUL, double, matmul


@pytest.fixture
def cache(tmp_path):
    return BuildCache(tmp_path / "cache")


@pytest.fixture
def compiled(monkeypatch):
    return jobs_asked(monkeypatch)


def test_results_come_in_the_order_of_the_requests_and_equal_ones_once(cache, compiled):
    asked = [double(512), double(256), double(512), double(256, dtype="fp32")]
    steps = []
    found = compile_fakes(asked, cache, workers=2, progress=lambda *step: steps.append(step))
    assert [c.request for c in found] == asked
    assert all(c.ok and not c.cached and c.seconds > 0 for c in found)
    assert found[0] is found[2]
    assert len(compiled) == 3
    assert steps == [("double", 1, 3), ("double", 2, 3), ("double", 3, 3)]
    alone = aot.job(DOUBLE, {}, {"BLOCK": 256, "num_warps": 4, "num_stages": 1}, "bf16", H800)
    assert found[1].cubin == aot.build(alone)


def test_a_kernel_that_cannot_launch_says_why(cache):
    fits, too_large = compile_fakes([matmul(num_stages=2), matmul(num_stages=6)], cache, A100)
    assert fits.ok and fits.report.matrix == "HMMA"
    assert not too_large.ok
    assert too_large.reason == f"{too_large.cubin.shared} bytes of shared memory per block, a100 allows 166912"
    table = row(too_large, A100)
    assert (table["kernel"], table["target"], table["blocks_per_sm"]) == ("matmul", "a100", 0)
    assert table["shared_bytes"] > 166912 and table["threads"] == 256 and table["reason"] == too_large.reason
    json.dumps(table)


def test_an_fp8_kernel_is_refused_on_sm_80(cache):
    asked = request(MATMUL, {"N": 256}, {**MATMUL.default({}, A100), "BM": 64, "num_stages": 2}, "fp8e4nv")
    (found,) = compile_fakes([asked], cache, A100)
    assert "fp8e4nv" in found.reason


def test_names_that_are_no_kernels_are_a_usage_error(cache):
    with pytest.raises(UsageError, match="unknown kernels: double") as e:
        compile_all([double()], H800, cache=cache, kernels={"matmul": MATMUL})
    assert e.value.remedy == "known are matmul"


def test_a_request_that_makes_no_job_costs_only_itself(cache):
    bad = replace(double(), config=(("BLOCK", 256),))
    good, found = compile_fakes([double(), bad], cache)
    assert good.ok
    assert found.reason == "KeyError: 'num_warps'" and found.cubin is None
    assert row(found, H800)["registers"] is None


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.8.0", "3.8.1+git1234"])
def test_versions_that_are_supported(version):
    check_version(version)


@pytest.mark.parametrize(
    ("version", "why"), [("3.5.1", "older than 3.6"), ("3.9.0", "ELF ABI"), ("4.0", "newer than 3.8"), ("?", "older")]
)
def test_versions_that_are_not(version, why):
    with pytest.raises(IncompatibleError, match=why) as e:
        check_version(version)
    assert e.value.exit_code == 5
    assert version in e.value.cause and "'triton>=3.6,<3.9'" in e.value.remedy


def test_compiling_without_triton_is_refused(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(IncompatibleError, match="GPU kernels need Triton") as e:
        compile_fakes([double()], cache)
    assert e.value.exit_code == 5


def test_a_version_that_is_not_supported_compiles_nothing(cache, monkeypatch, compiled):
    monkeypatch.setattr("triton.__version__", "3.9.0")
    with pytest.raises(IncompatibleError, match="ELF ABI"):
        compile_fakes([double()], cache)
    assert compiled == []


def test_the_interpreter_variable_is_named(cache, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(IncompatibleError, match="TRITON_INTERPRET"):
        compile_fakes([double()], cache)


def test_a_registered_kernel_compiles_for_old_and_new(cache):
    dims = {"N": 2048, "X_STRIDE": 2048, "EPS": 1e-6, "RESIDUAL": True, "INDEXED": False}
    for name in ("a100", "b200"):
        gpu = target(name)
        (found,) = compile_all([request(RMS_NORM, dims, RMS_NORM.default(dims, gpu), "bf16")], gpu, cache=cache)
        assert found.ok, found
        assert found.usage.architecture == gpu.capability
