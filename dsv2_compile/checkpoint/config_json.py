"""config.json -> ModelConfig. Every problem is listed at once, with its key path and what is allowed.

Both spellings of rotary embedding are read: ``rope_scaling`` with ``rope_theta`` beside it (published files),
and one ``rope_parameters`` (transformers 5). Arithmetic that the published model code has and this compiler has
not is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv2_compile.checkpoint.fields import Fields, Span, short
from dsv2_compile.checkpoint.rope_json import parse_rope
from dsv2_compile.config import ModelConfig
from dsv2_compile.engine import strictjson
from dsv2_compile.errors import ModelError

MAX_BYTES = 1 << 20
SUPPORTED = ("deepseek_v2",)
ARCHITECTURE = "DeepseekV2ForCausalLM"
MAX_EXPERTS_IN_ALL = 1 << 16
"""Of layers x experts: bounds the table of tensor names (DeepSeek-V2 has 9,600)."""

_SIZE, _HEADS, _COUNT = Span(1, 1 << 20), Span(1, 4096), Span(1, 4096)
_INTEGERS: dict[str, Span] = {
    "vocab_size": Span(1, 1 << 24),
    "hidden_size": _SIZE,
    "num_hidden_layers": Span(1, 1024),
    "num_attention_heads": _HEADS,
    "kv_lora_rank": _SIZE,
    "qk_nope_head_dim": Span(1, 4096),
    "qk_rope_head_dim": Span(2, 1024),
    "v_head_dim": Span(1, 4096),
    "intermediate_size": _SIZE,
    "first_k_dense_replace": Span(0, 1024),
    "max_position_embeddings": Span(1, 1 << 24),
}
_EXPERT_INTEGERS = {"n_routed_experts": _COUNT, "moe_intermediate_size": _SIZE, "num_experts_per_tok": _COUNT}
_ROUTING = frozenset(
    (*_EXPERT_INTEGERS, "topk_method", "n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob")
)
DTYPES = ("float32", "bfloat16", "float16")

_ONLY: dict[str, tuple[Any, str]] = {
    "attention_bias": (False, "attention with biases is not supported"),
    "mlp_bias": (False, "feed-forward layers with biases are not supported"),
    "hidden_act": ("silu", "no other activation is supported"),
    "scoring_func": ("softmax", "DeepSeek-V2 gates with softmax; sigmoid is DeepSeek-V3's"),
    "partial_rotary_factor": (1, "all of qk_rope_head_dim is rotated"),
    "moe_layer_freq": (1, "every layer after the dense ones must have experts"),
    "quantization_config": (None, "quantised checkpoints are not read; take the bf16 one"),
    "compression_config": (None, "compressed checkpoints are not read; take the bf16 one"),
}
"""Keys that may be absent, null or this value, and why no other is allowed."""

_UNUSED = frozenset(
    (
        "_name_or_path",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "aux_loss_alpha",
        "ep_size",
        "head_dim",
        "initializer_range",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "seq_aux",
        "transformers_version",
        "use_cache",
    )
)
"""Keys of published files that say nothing about what the model computes."""


@dataclass(frozen=True)
class ParsedConfig:
    """``dtype``: what config.json says of the stored weights, None if nothing."""

    model: ModelConfig
    dtype: str | None
    remote_code: bool
    notes: tuple[str, ...]


def parse(data: bytes) -> ParsedConfig:
    """ModelError listing every problem; for a model of another type only that."""
    problems: list[str] = []
    fields = Fields(_object(data), problems)
    _check_type(fields)
    values = _values(fields)
    _check_consistency(fields, values)
    dtype = _dtype(fields)
    if problems:
        raise ModelError(
            f"config.json does not describe a model that can be compiled; keys to correct: {len(problems)}.",
            "Take config.json from the published model, or correct these keys.",
            problems,
        )
    notes = []
    if unknown := sorted(k for k in fields.data if k not in fields.read and k not in _UNUSED):
        notes.append(f"config.json: keys without effect here: {', '.join(short(k)[1:-1] for k in unknown[:20])}")
    return ParsedConfig(ModelConfig(**values), dtype, fields.data.get("auto_map") is not None, tuple(notes))


def generation_eos(data: Any, config: ModelConfig) -> tuple[int, ...]:
    """End-of-sequence ids of a parsed generation_config.json, which stand before those of config.json; () if none."""
    if not isinstance(data, dict):
        raise ModelError("generation_config.json is not a JSON object.", "Correct or remove the file.")
    problems: list[str] = []
    fields = Fields(data, problems)
    ids = fields.ids("eos_token_id", Span(0, config.vocab_size - 1))
    if problems:
        raise ModelError("generation_config.json does not fit the model.", "Correct or remove the file.", problems)
    return ids


def _object(data: bytes) -> dict[str, Any]:
    remedy = "Take config.json from the published model again."
    try:
        value = strictjson.loads(data, MAX_BYTES)
    except strictjson.JsonError as e:
        raise ModelError(f"config.json is malformed: {e}.", remedy) from None
    if not isinstance(value, dict):
        raise ModelError("config.json is not a JSON object.", remedy)
    return value


def _check_type(fields: Fields) -> None:
    kind = fields.data.get("model_type")
    fields.read.add("model_type")
    if kind not in SUPPORTED:
        named = f"is {short(kind)}" if "model_type" in fields.data else "is missing"
        architectures = fields.data.get("architectures")
        of = f" (architectures {short(architectures)})" if architectures else ""
        raise ModelError(
            f"This is no DeepSeek-V2 model: model_type in config.json {named}{of}.",
            f"Give a model of a supported type; supported: {', '.join(SUPPORTED)}.",
        )


def _values(fields: Fields) -> dict[str, Any]:
    """Keyword arguments of ModelConfig; None where a problem was found."""
    values: dict[str, Any] = {key: fields.integer(key, span) for key, span in _INTEGERS.items()}
    values["q_lora_rank"] = fields.integer("q_lora_rank", _SIZE, nullable=True)
    values |= _experts(fields)
    values["rms_norm_eps"] = fields.number("rms_norm_eps", Span(0, 1, above=True))
    values["tie_word_embeddings"] = fields.flag("tie_word_embeddings", False)
    ids = Span(0, (values["vocab_size"] or _INTEGERS["vocab_size"].high) - 1)
    values["bos_token_id"] = fields.integer("bos_token_id", ids, None)
    values["eos_token_ids"] = fields.ids("eos_token_id", ids)
    values["rope"] = parse_rope(fields)
    for key, (value, reason) in _ONLY.items():
        fields.only(key, value, reason)
    architectures = fields.data.get("architectures")
    fields.read.add("architectures")
    if architectures is not None and ARCHITECTURE not in (architectures if isinstance(architectures, list) else ()):
        fields.refuse("architectures", f"{short(architectures)} is without {ARCHITECTURE}")
    return values


def _experts(fields: Fields) -> dict[str, Any]:
    """A model without experts has null for n_routed_experts; nothing is then asked of the keys that route."""
    values: dict[str, Any] = {"n_shared_experts": fields.integer("n_shared_experts", Span(0, 256), nullable=True) or 0}
    if "n_routed_experts" in fields.data and fields.data["n_routed_experts"] is None:
        fields.read |= _ROUTING
        return values | {"n_routed_experts": 0, "moe_intermediate_size": 1, "num_experts_per_tok": 1}
    for key, span in _EXPERT_INTEGERS.items():
        values[key] = fields.integer(key, span)
    method = fields.choice("topk_method", ("greedy", "group_limited_greedy"))
    grouped = method == "group_limited_greedy"
    fields.read |= _ROUTING
    return values | {
        "topk_method": method,
        "n_group": fields.integer("n_group", _COUNT) if grouped else 1,
        "topk_group": fields.integer("topk_group", _COUNT) if grouped else 1,
        "routed_scaling_factor": fields.number("routed_scaling_factor", Span(0, 10_000, above=True), 1.0),
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
    }


def _dtype(fields: Fields) -> str | None:
    """``dtype``, or ``torch_dtype`` as it was called before transformers 5."""
    named = [fields.choice(key, DTYPES, None) for key in ("dtype", "torch_dtype")]
    if None not in named and named[0] != named[1]:
        fields.refuse("dtype", f"{named[0]}, but torch_dtype is {named[1]}")
    return named[0] or named[1]


def _check_consistency(fields: Fields, values: dict[str, Any]) -> None:
    """What the keys must be to each other; a rule is left out where a key it needs was refused."""

    def rule(key: str, needs: str, holds: Callable[..., bool], text: str) -> None:
        operands = [values[name] for name in needs.split()]
        if None not in operands and not holds(*operands):
            fields.refuse(key, text.format(*operands))

    heads = values["num_attention_heads"]
    if (kv := fields.integer("num_key_value_heads", _HEADS, None)) is not None and heads not in (kv, None):
        fields.refuse("num_key_value_heads", f"{kv} is not num_attention_heads, {heads}: the latent serves every head")
    rule("qk_rope_head_dim", "qk_rope_head_dim", lambda d: d % 2 == 0, "{0} is odd; dims are rotated in pairs")
    parts = "qk_nope_head_dim qk_rope_head_dim"
    if (qk := fields.integer("qk_head_dim", Span(1, 1 << 17), None)) is not None:
        rule(
            "qk_head_dim",
            parts,
            lambda n, r: n + r == qk,
            f"{qk} is not qk_nope_head_dim + qk_rope_head_dim, {{0}} + {{1}}",
        )
    if not values["n_routed_experts"]:
        return
    rule(
        "num_experts_per_tok", "num_experts_per_tok n_routed_experts", int.__le__, "{0} is above n_routed_experts, {1}"
    )
    rule(
        "n_routed_experts",
        "n_routed_experts num_hidden_layers",
        lambda e, n: e * n <= MAX_EXPERTS_IN_ALL,
        f"{{0}} in {{1}} layers; at most {MAX_EXPERTS_IN_ALL} experts in all are supported",
    )
    groups = "n_group n_routed_experts"
    rule("n_group", groups, lambda g, e: e % g == 0, "{0} does not divide n_routed_experts, {1}")
    rule("topk_group", "topk_group n_group", int.__le__, "{0} is above n_group, {1}")
    rule(
        "topk_group",
        "topk_group num_experts_per_tok " + groups,
        lambda kept, top, g, e: e % g != 0 or top > e or kept * (e // g) >= top,
        "{0} groups of n_routed_experts / n_group experts are fewer than num_experts_per_tok, {1}",
    )
