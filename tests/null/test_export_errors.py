"""A reference that cannot be compiled is an error that names the part of the model and the line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import ModelError
from dsv2_compile.export import export, traced_pieces
from dsv2_compile.model import reference
from dsv2_compile.passes.pipeline import check_lowerable, pipeline, run

CONFIG = ModelConfig(
    vocab_size=37, hidden_size=26, num_hidden_layers=2, num_attention_heads=3, q_lora_rank=9, kv_lora_rank=11,
    qk_nope_head_dim=7, qk_rope_head_dim=6, v_head_dim=5, intermediate_size=17, first_k_dense_replace=1,
    moe_intermediate_size=13, n_routed_experts=6, n_shared_experts=2, num_experts_per_tok=3,
    max_position_embeddings=24,
)  # fmt: skip
Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_kept():
    """A spoiled reference is traced anew, and forgotten."""
    traced_pieces.cache_clear()
    yield
    traced_pieces.cache_clear()


def compile_naive() -> None:
    program = export(CONFIG, "prefill")
    run(program, pipeline())
    check_lowerable(program)


def branch(plain: Function) -> Function:
    def branching(w: Any, prefix: str, x: torch.Tensor) -> torch.Tensor:
        return plain(w, prefix, x) if x.sum() > 0 else x  # the line to name

    return branching


def item(plain: Function) -> Function:
    def reading(config: ModelConfig, gate: torch.Tensor, x: torch.Tensor) -> Any:
        ids, weights = plain(config, gate, x)
        return ids, weights * float(torch.tensor([2.0, 3.0])[int(ids[0, 0, 0])])  # the line to name

    return reading


def loop(plain: Function) -> Function:
    def looping(x: torch.Tensor, ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        for _ in ids.unique().tolist():  # the line to name
            x = x + 1
        return plain(x, ids, *rest)

    return looping


def no_meta_kernel(plain: Function) -> Function:
    def whitening(config: ModelConfig, weights: Any, x: torch.Tensor) -> torch.Tensor:
        return plain(config, weights, torch.linalg.lstsq(x.T, x.T).solution)  # the line to name

    return whitening


def wrong_shape(plain: Function) -> Function:
    def wider(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return plain(x, cos.repeat(1, 1, 2)[..., :5], sin)  # the line to name

    return wider


TRACING = {
    "branch on a value": ("mlp", branch, "model.layers.0, layer > branching"),
    "number read from a tensor": ("route", item, "model.layers.1, layer > moe > reading"),
    "loop over values": ("routed_experts", loop, "model.layers.1, layer > moe > looping"),
    "no meta kernel": ("head", no_meta_kernel, "model.norm and lm_head, whitening"),
    "shapes that do not fit": ("rotate", wrong_shape, "model.layers.0, layer > attention > wider"),
}
"""Function of the reference, what becomes of it, the place that the error must name."""


@pytest.mark.parametrize("title", TRACING)
def test_what_cannot_be_traced_is_named(title, monkeypatch, capfd):
    name, change, place = TRACING[title]
    monkeypatch.setattr(reference, name, change(getattr(reference, name)))
    with pytest.raises(ModelError) as e:
        compile_naive()
    assert e.value.exit_code == 3
    assert e.value.cause.startswith(f"torch.export cannot trace {place}")
    assert f"{__file__}:" in e.value.cause or title == "shapes that do not fit"
    assert "\n" not in e.value.cause
    assert "must not branch on tensor values" in e.value.remedy
    assert capfd.readouterr().err == ""  # torch prints the whole graph


def test_an_operator_that_nothing_lowers_is_named(monkeypatch):
    plain = reference.last

    def summed(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return plain(hidden.cumsum(1).tanh(), lengths)

    monkeypatch.setattr(reference, "last", summed)
    with pytest.raises(ModelError) as e:
        compile_naive()
    assert e.value.cause.startswith("no pass fuses aten.cumsum.default, aten.tanh.default of the prefill graph")
    assert [p.partition(", from ")[2].partition(f" ({__file__}:")[0] for p in e.value.problems] == [
        "model.norm and lm_head, summed"
    ] * 2
    assert all("return plain(hidden.cumsum(1).tanh(), lengths)" in p for p in e.value.problems)


def test_a_layer_that_does_not_match_is_named(monkeypatch):
    plain = reference.rotate

    def slower(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return plain(x, cos, sin) if x.dim() == 3 else plain(x, cos.abs(), sin)

    monkeypatch.setattr(reference, "rotate", slower)
    with pytest.raises(ModelError, match="pass rope matched 0 of 2 in prefill; nearest miss at cat") as e:
        compile_naive()
    assert "from model.layers.0, layer > attention (dsv2_compile/model/reference.py:" in e.value.cause
    assert "should be aten.unsqueeze.default but is abs" in e.value.cause


def test_tensors_among_the_keywords_are_kept(monkeypatch):
    """As for every other argument: the stamped graph holds its own nodes, and no device."""
    plain = reference.last

    def segmented(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(plain(hidden, lengths), "max", lengths=lengths, unsafe=True)

    monkeypatch.setattr(reference, "last", segmented)
    graph = export(replace(CONFIG, num_hidden_layers=1), "prefill").graph
    graph.lint()
    (found,) = (n for n in graph.nodes if "segment_reduce" in str(n.target))
    assert found.kwargs["lengths"].graph is graph


@pytest.mark.parametrize(("symbol", "size"), [("batch", (3, -1)), ("tokens", (-1, 5))])
def test_a_size_that_the_reference_fixes_is_named(symbol, size, monkeypatch):
    plain = reference.embed

    def fixed(w: Any, tokens: torch.Tensor, past: torch.Tensor, context: int) -> Any:
        return plain(w, tokens.view(size), past, context)

    monkeypatch.setattr(reference, "embed", fixed)
    with pytest.raises(ModelError, match=rf"export specialised {symbol} of tokens in model.embed_tokens to \d"):
        export(replace(CONFIG, num_hidden_layers=1), "prefill")
