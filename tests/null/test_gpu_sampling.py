"""The sampling kernel means what the Python runtime does."""

from __future__ import annotations

import pytest

from dsv2_compile.kernels.gpu.cases.sampling import CASES
from dsv2_compile.kernels.gpu.check import check, on_host
from dsv2_compile.kernels.gpu.sampling import SAMPLE
from dsv2_compile.runtime.sampling import Sampling, sample
from dsv2_compile.targets import target


class Given:
    """A random generator that draws one number."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


@pytest.mark.parametrize("case", CASES["sample"], ids=lambda c: c.name)
def test_tokens_are_those_of_the_runtime(case):
    seen = []

    def runtime(kernel, dims, config, sizes, dtype, tensors):
        for r in range(sizes["rows"]):
            how = Sampling(*(tensors[name][r].item() for name in ("temperature", "top_k", "top_p")))
            seen.append(sample(tensors["logits"][r].numpy(), how, Given(tensors["uniform"][r].item())))
            tensors["tokens"][r] = seen[-1]

    for seed in range(20):
        assert all(error.passed for error in check(case, "fp32", {}, runtime, seed))
    assert len(set(seen)) > 1 or case.dims["VOCAB"] == 1


def test_sample_in_small_blocks():
    for case in CASES["sample"]:
        if case.dims["VOCAB"] > 512:  # time
            continue
        config = {**SAMPLE.default(case.dims, target("h800")), "BLOCK": 128}
        for error in check(case, "fp32", config, on_host, 1):
            assert error.passed, (case.name, error)
