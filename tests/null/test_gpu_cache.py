"""The rotary kernel in place: `out` is `q`."""

from __future__ import annotations

import pytest
import torch

from dsv2_compile.kernels.gpu.cache import ROPE_QUERY
from dsv2_compile.kernels.gpu.check import on_host
from dsv2_compile.kernels.ops.rope import rotate

ROWS, HEADS, NOPE, ROPE = 3, 5, 24, 8


@pytest.mark.parametrize("block", [1, 4, 8])
def test_rope_query_in_place(block):
    g = torch.Generator().manual_seed(0)
    q = torch.randn(ROWS, HEADS, NOPE + ROPE, generator=g)
    cos, sin = torch.rand(2, 9, ROPE // 2, generator=g)
    positions = torch.tensor([8, 0, 3], dtype=torch.int32)
    before = q.clone()
    row = HEADS * (NOPE + ROPE)
    dims = {"HEADS": HEADS, "NOPE": NOPE, "ROPE": ROPE, "Q_ROW": row}
    dims |= {"OUT_ROW": row, "OUT_HEAD": NOPE + ROPE, "OUT_OFFSET": NOPE}
    tensors = {"q": q, "cos": cos, "sin": sin, "positions": positions, "out": q}
    config = {"BLOCK_H": block, "num_warps": 4, "num_stages": 1}
    order = list(reversed(range(ROWS * -(-HEADS // block))))
    on_host(ROPE_QUERY, dims, config, {"rows": ROWS}, "fp32", tensors, order)
    assert torch.equal(q[..., :NOPE], before[..., :NOPE])
    at = positions.long()
    torch.testing.assert_close(q[..., NOPE:], rotate(before[..., NOPE:], cos[at][:, None], sin[at][:, None]))
