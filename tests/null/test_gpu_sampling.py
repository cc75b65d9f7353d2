"""The sampling kernel means what the Python runtime does."""

from __future__ import annotations

import math

import pytest
import torch

from dsv2_compile.kernels.gpu.cases.sampling import CASES
from dsv2_compile.kernels.gpu.check import check, on_host
from dsv2_compile.kernels.gpu.sampling import SAMPLE
from dsv2_compile.runtime.sampling import Draw, Sampling, sample
from dsv2_compile.targets import target


@pytest.mark.parametrize("case", CASES["sample"], ids=lambda c: c.name)
def test_tokens_are_those_of_the_runtime(case):
    seen = []

    def runtime(kernel, dims, config, sizes, dtype, tensors):
        for r in range(sizes["rows"]):
            how = Sampling(*(tensors[name][r].item() for name in ("temperature", "top_k", "top_p")))
            seen.append(sample(tensors["logits"][r].numpy(), Draw(how, tensors["uniform"][r].item())))
            tensors["tokens"][r] = seen[-1]

    for seed in range(20):
        assert all(error.passed for error in check(case, "fp32", {}, runtime, seed))
    assert len(set(seen)) > 1 or case.dims["VOCAB"] == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_of_no_numbers_has_no_token(value, temperature):
    """Wherever the value is; the rows beside it have theirs."""
    rows, vocab = 4, 300
    tensors = {
        "logits": torch.randn(rows, vocab),
        "temperature": torch.full((rows,), temperature),
        "top_p": torch.full((rows,), 0.9),
        "top_k": torch.full((rows,), 5, dtype=torch.int32),
        "uniform": torch.full((rows,), 0.5),
        "tokens": torch.full((rows,), -7, dtype=torch.int32),
    }
    for row, at in ((0, 0), (2, 299)):
        tensors["logits"][row, at] = value
    dims, sizes = {"VOCAB": vocab}, {"rows": rows}
    given = {name: tensor for name, tensor in tensors.items() if name != "tokens"}
    expected = SAMPLE.reference(dims, sizes, **given)["tokens"].tolist()
    on_host(SAMPLE, dims, {**SAMPLE.default(dims, target("h800")), "BLOCK": 128}, sizes, "fp32", tensors)
    assert tensors["tokens"].tolist() == expected
    assert [token == -1 for token in expected] == [True, False, True, False]


def test_sample_in_small_blocks():
    for case in CASES["sample"]:
        if case.dims["VOCAB"] > 512:  # time
            continue
        config = {**SAMPLE.default(case.dims, target("h800")), "BLOCK": 128}
        for error in check(case, "fp32", config, on_host, 1):
            assert error.passed, (case.name, error)
