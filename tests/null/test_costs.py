"""The cost table against a count by hand: what a decode step must read."""

from __future__ import annotations

import pytest

from dsv2_compile.costs import program_report
from tests.small_engine import SMALL, fused


@pytest.fixture(scope="module")
def decode():
    return fused(SMALL, "decode")


def moved(program, batch: int, context: int) -> int:
    report = program_report(program, {"batch": batch, "tokens": 1, "context": context})
    return sum(op["bytes"] for op in report["operators"])


def weights_read(batch: int) -> int:
    """Bytes of float32 weights that a step of ``batch`` tokens reads, experts as if no two tokens shared one."""
    c = SMALL
    h, heads, latent, rank = c.hidden_size, c.num_attention_heads, c.kv_lora_rank, c.q_lora_rank
    attention = rank * (h + heads * c.qk_head_dim) + c.cache_dim * h
    attention += heads * latent * (c.qk_nope_head_dim + c.v_head_dim) + h * heads * c.v_head_dim
    chosen = min(c.n_routed_experts, batch * c.num_experts_per_tok)
    experts = c.n_routed_experts * h + 3 * h * c.moe_intermediate_size * (chosen + c.n_shared_experts)
    dense = 3 * h * c.intermediate_size * c.first_k_dense_replace
    layers = c.num_hidden_layers
    return 4 * (layers * attention + (layers - c.first_k_dense_replace) * experts + dense + c.vocab_size * h)


@pytest.mark.parametrize("batch", [1, 2])
def test_decode_reads_its_weights_once(decode, batch):
    """Activations come on top: small beside the weights, but not nothing."""
    bare = moved(decode, batch, 0)
    assert weights_read(batch) < bare < 1.25 * weights_read(batch)


@pytest.mark.parametrize(("batch", "context"), [(1, 100), (3, 5000)])
def test_a_cached_position_is_one_row_of_each_layer(decode, batch, context):
    row = 4 * SMALL.num_hidden_layers * SMALL.cache_dim
    assert moved(decode, batch, context) - moved(decode, batch, 0) == batch * context * row


def test_calls_are_counted_and_the_dearest_come_first(decode):
    operators = program_report(decode, {"batch": 1, "tokens": 1, "context": 64})["operators"]
    calls = {op["op"]: op["calls"] for op in operators}
    assert calls["dsv2.mla_absorbed"] == SMALL.num_hidden_layers
    assert calls["dsv2.experts"] == calls["dsv2.gate"] == SMALL.num_hidden_layers - SMALL.first_k_dense_replace
    assert [op["bytes"] for op in operators] == sorted((op["bytes"] for op in operators), reverse=True)
