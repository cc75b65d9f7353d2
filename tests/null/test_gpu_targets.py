"""The table of machines: what must hold between its figures, and the word for a name that is not in it."""

from __future__ import annotations

import pytest

from dsv2_compile.errors import UsageError
from dsv2_compile.targets import ARCHITECTURES, GPUS, TARGETS, target


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda t: t.name)
def test_figures_of_a_gpu_agree(gpu):
    arch = gpu.architecture
    assert set(gpu.peak) == set(arch.dtypes)
    assert gpu.flops == gpu.peak["bf16"] == gpu.peak["fp16"]
    assert gpu.peak["fp32"] <= gpu.peak["tf32"] <= gpu.peak["bf16"] < gpu.peak["int8"]
    assert arch.shared_per_block + arch.shared_reserved == arch.shared_per_sm
    assert 1e6 < gpu.l2 < gpu.memory < 1e12
    assert gpu.link < gpu.bandwidth
    assert 50 < gpu.sms < 200
    assert 30 < gpu.flops / gpu.bandwidth < 500, "FLOP per byte"
    assert gpu in {gpu}, "hashable"


def test_the_capability_has_the_dtypes():
    fp8 = {name for name, a in ARCHITECTURES.items() if "fp8" in a.dtypes}
    assert fp8 == set(ARCHITECTURES) - {"sm_80"}
    assert all("bf16" in a.dtypes for a in ARCHITECTURES.values())


def test_tensor_memory_is_where_its_instructions_are():
    assert {a.capability for a in ARCHITECTURES.values() if a.tensor_memory} == {
        a.capability for a in ARCHITECTURES.values() if a.matrix == "tcgen05"
    }


def test_parts_for_the_same_market_differ_where_they_should():
    h100, h800, a100, a800 = (target(n) for n in ("h100", "h800", "a100", "a800"))
    assert (h800.link, a800.link) == (200e9, 200e9)
    assert h800.link < h100.link and a800.link < a100.link
    assert (h800.flops, h800.bandwidth, h800.sms) == (h100.flops, h100.bandwidth, h100.sms)


def test_roofline():
    h800 = target("h800")
    assert h800.seconds(3.35e12, 0) == pytest.approx(1)
    assert h800.seconds(0, 2 * 989e12) == pytest.approx(2)


def test_the_cpu_is_no_gpu():
    assert "cpu" not in GPUS and len(GPUS) == len(TARGETS) - 1
    with pytest.raises(UsageError, match="target 'cpu' is no GPU"):
        target("cpu").architecture  # noqa: B018


@pytest.mark.parametrize(
    ("name", "meant"),
    [("h8000", "h800"), ("H100", "h100"), ("rtx-4090", "rtx4090"), ("a10", "a100"), ("voodoo2", None)],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name, meant):
    with pytest.raises(UsageError) as e:
        target(name)
    assert e.value.exit_code == 2
    assert repr(name) in e.value.cause
    assert all(known in e.value.remedy for known in TARGETS)
    assert ("did you mean" in e.value.remedy) == (meant is not None)
    if meant:
        assert e.value.remedy.startswith(f"did you mean {meant}?")
