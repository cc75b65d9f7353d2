"""Cases 8 and 9: config.json. What published files and transformers write is read; the rest is refused, all at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.config_json import parse
from dsv2_compile.config import ModelConfig, RopeConfig
from dsv2_compile.errors import ModelError
from tests.checkpoints import LITE, TINY, V2, tiny_tensors, write
from tests.oracles import _BASE, CONFIGS, RUN_KEYS

YARN = LITE["rope_scaling"]


def read(config: dict[str, Any]) -> ModelConfig:
    return parse(json.dumps(config).encode()).model


def refused(config: dict[str, Any] | str | bytes) -> ModelError:
    data = (
        config
        if isinstance(config, bytes)
        else config.encode()
        if isinstance(config, str)
        else json.dumps(config).encode()
    )
    with pytest.raises(ModelError) as e:
        parse(data)
    assert e.value.exit_code == 3
    assert e.value.cause.isprintable() and e.value.remedy.isprintable()
    assert all(p.isprintable() and len(p) < 250 for p in e.value.problems)
    return e.value


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in keys}


class TestPublished:
    def test_v2(self):
        c = read(V2)
        assert (c.hidden_size, c.num_hidden_layers, c.num_attention_heads) == (5120, 60, 128)
        assert (c.q_lora_rank, c.kv_lora_rank, c.qk_head_dim, c.v_head_dim) == (1536, 512, 192, 128)
        assert (c.n_routed_experts, c.n_shared_experts, c.num_experts_per_tok) == (160, 2, 6)
        assert c.grouped and (c.n_group, c.topk_group, c.routed_scaling_factor) == (8, 3, 16.0)
        assert c.rope == RopeConfig(10000.0, "yarn", 40.0, 4096, 32.0, 1.0, 1.0, 1.0)
        assert (c.bos_token_id, c.eos_token_ids, c.norm_topk_prob) == (100000, (100001,), False)

    def test_lite(self):
        c = read(LITE)
        assert c.q_lora_rank is None and not c.grouped and c.intermediate_size == 10944
        assert c.rope.mscale == c.rope.mscale_all_dim == 0.707
        assert c.softmax_scale == pytest.approx(0.1147, abs=5e-5)

    @pytest.mark.parametrize("config", [V2, LITE])
    def test_every_published_key_is_known(self, config):
        parsed = parse(json.dumps(config).encode())
        assert parsed.notes == () and parsed.dtype == "bfloat16" and parsed.remote_code

    def test_keys_of_other_tools_are_noted(self):
        assert parse(json.dumps(LITE | {"tune\nd_by": 1, "b": 2}).encode()).notes == (
            "config.json: keys without effect here: b, tune\\nd_by",
        )

    @pytest.mark.parametrize(
        "changes, field, value",
        [
            ({"eos_token_id": [100001, 5]}, "eos_token_ids", (100001, 5)),
            ({"eos_token_id": None}, "eos_token_ids", ()),
            ({"bos_token_id": None}, "bos_token_id", None),
            ({"n_shared_experts": None}, "n_shared_experts", 0),
            ({"n_shared_experts": 0}, "n_shared_experts", 0),
            ({"n_group": None, "topk_group": None}, "n_group", 1),
            ({"n_group": 8, "topk_group": 3}, "n_group", 1),
            ({"norm_topk_prob": None}, "norm_topk_prob", False),
            ({"norm_topk_prob": True}, "norm_topk_prob", True),
            ({"num_key_value_heads": None}, "num_attention_heads", 16),
            ({"first_k_dense_replace": 99}, "first_k_dense_replace", 99),
            ({"n_routed_experts": None, "num_experts_per_tok": None}, "n_routed_experts", 0),
            ({"rope_scaling": None}, "rope", RopeConfig()),
            ({"rope_scaling": None, "rope_theta": 5e5}, "rope", RopeConfig(theta=5e5)),
            ({"moe_layer_freq": None, "quantization_config": None}, "hidden_size", 2048),
            ({"architectures": None, "auto_map": None}, "hidden_size", 2048),
            ({"qk_head_dim": 192, "head_dim": 64, "dtype": "bfloat16"}, "hidden_size", 2048),
        ],
    )
    def test_accepted(self, changes, field, value):
        assert getattr(read(LITE | changes), field) == value

    def test_absent_keys_have_the_published_defaults(self):
        optional = (
            "attention_bias bos_token_id eos_token_id hidden_act moe_layer_freq n_group norm_topk_prob rope_theta"
        )
        optional += " num_key_value_heads scoring_func tie_word_embeddings topk_group torch_dtype routed_scaling_factor"
        expected = read(LITE | {"bos_token_id": None, "eos_token_id": None})
        assert read(without(LITE, *optional.split())) == expected


class TestRope:
    NEW = {k: v for k, v in YARN.items() if k != "type"} | {"rope_type": "yarn", "rope_theta": 10000}

    @pytest.mark.parametrize(
        "keys",
        [
            {"rope_scaling": YARN, "rope_theta": 10000},
            {"rope_scaling": YARN},
            {"rope_scaling": YARN | {"rope_type": "yarn"}, "rope_theta": 10000.0},
            {"rope_parameters": NEW},
            {"rope_parameters": NEW | {"type": "yarn"}},
            {"rope_parameters": NEW, "rope_theta": 10000, "rope_scaling": None},
            {"rope_parameters": NEW, "rope_scaling": YARN, "rope_theta": 10000},
            {"rope_parameters": NEW | {"truncate": True, "attention_factor": None, "partial_rotary_factor": 1.0}},
        ],
    )
    def test_spellings(self, keys):
        assert read(without(LITE, "rope_scaling", "rope_theta") | keys) == read(LITE)

    @pytest.mark.parametrize(
        "keys, problem",
        [
            ({"rope_parameters": NEW | {"factor": 20}}, "rope_parameters: it says something else than rope_scaling"),
            ({"rope_parameters": NEW | {"rope_theta": 5}}, "rope_theta: the file gives more than one: 5.0, 10000.0"),
            ({"rope_scaling": YARN | {"rope_type": "default"}}, "rope_scaling.type: yarn, but rope_type is default"),
            (
                {"rope_scaling": YARN | {"type": "linear"}},
                "rope_scaling.type: 'linear'; it must be one of default, yarn",
            ),
            (
                {"rope_scaling": YARN | {"type": None}},
                "rope_scaling.rope_type: missing; it must be one of default, yarn",
            ),
            ({"rope_scaling": {}}, "rope_scaling.rope_type: missing; it must be one of default, yarn"),
            ({"rope_scaling": []}, "rope_scaling: []; it must be an object or null"),
            (
                {"rope_scaling": without(YARN, "factor")},
                "rope_scaling.factor: missing; it must be a number from 1 to 10000",
            ),
            ({"rope_scaling": YARN | {"factor": 0}}, "rope_scaling.factor: 0; it must be a number from 1 to 10000"),
            (
                {"rope_scaling": without(YARN, "original_max_position_embeddings")},
                "rope_scaling.original_max_position_embeddings: missing; it must be an integer from 1 to 16777216",
            ),
            ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "rope_scaling.beta_fast: 0.5 is below beta_slow, 1"),
            ({"rope_scaling": YARN | {"mscale": -1}}, "rope_scaling.mscale: -1; it must be a number from 0 to 100"),
        ],
    )
    def test_refused(self, keys, problem):
        assert refused(LITE | keys).problems == (problem,)

    @pytest.mark.parametrize(
        "key, value", [("attention_factor", 1.5), ("truncate", False), ("partial_rotary_factor", 0.5)]
    )
    def test_arithmetic_that_is_not_there(self, key, value):
        (problem,) = refused(LITE | {"rope_scaling": YARN | {key: value}}).problems
        assert problem.startswith(f"rope_scaling.{key}: {value}: the published model ")

    @pytest.mark.parametrize("name", CONFIGS)
    def test_transformers_agrees_on_the_frequencies(self, name, tmp_path):
        """Old and new spelling through transformers' own reader: the same frequencies and factor as ours."""
        import torch
        from transformers import DeepseekV2Config
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2RotaryEmbedding

        from dsv2_compile.model.rope import inverse_frequencies

        settings = {k: v for k, v in {**_BASE, **CONFIGS[name]}.items() if k not in RUN_KEYS}
        DeepseekV2Config(**settings).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        written["architectures"] = ["DeepseekV2ForCausalLM"]
        rope = dict(written["rope_parameters"])
        old = without(written, "rope_parameters") | {"rope_theta": rope.pop("rope_theta")}
        old["rope_scaling"] = None if rope["rope_type"] == "default" else without(rope, "rope_type") | {"type": "yarn"}
        assert read(old) == read(written)
        (tmp_path / "config.json").write_text(json.dumps(old))
        theirs = DeepseekV2RotaryEmbedding(DeepseekV2Config.from_pretrained(tmp_path))
        assert torch.allclose(theirs.inv_freq, inverse_frequencies(read(old)), rtol=1e-6)
        assert theirs.attention_scaling == pytest.approx(read(old).rope.attention_factor)


MUTATIONS: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 0}, "vocab_size: 0; it must be an integer from 1 to 16777216"),
    ({"vocab_size": -5}, "vocab_size: -5; it must be"),
    ({"vocab_size": None}, "vocab_size: None; it must be"),
    ({"vocab_size": "102400"}, "vocab_size: '102400'; it must be"),
    ({"vocab_size": 1 << 62}, "vocab_size: 4611686018427387904; it must be"),
    ({"hidden_size": 2048.0}, "hidden_size: 2048.0; it must be an integer"),
    ({"hidden_size": True}, "hidden_size: True; it must be an integer"),
    ({"hidden_size": [2048]}, "hidden_size: [2048]; it must be an integer"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: 0; it must be an integer from 1 to 1024"),
    ({"num_hidden_layers": 100_000}, "num_hidden_layers: 100000; it must be"),
    ({"num_attention_heads": 0, "num_key_value_heads": None}, "num_attention_heads: 0; it must be"),
    ({"num_key_value_heads": 8}, "num_key_value_heads: 8 is not num_attention_heads, 16"),
    ({"q_lora_rank": 0}, "q_lora_rank: 0; it must be an integer from 1 to 1048576, or null"),
    ({"kv_lora_rank": None}, "kv_lora_rank: None; it must be"),
    ({"qk_nope_head_dim": -1}, "qk_nope_head_dim: -1; it must be"),
    ({"qk_rope_head_dim": 63}, "qk_rope_head_dim: 63 is odd"),
    ({"qk_rope_head_dim": 0}, "qk_rope_head_dim: 0; it must be an integer from 2 to 1024"),
    ({"qk_head_dim": 128}, "qk_head_dim: 128 is not qk_nope_head_dim + qk_rope_head_dim, 128 + 64"),
    ({"v_head_dim": 0}, "v_head_dim: 0; it must be"),
    ({"intermediate_size": 0}, "intermediate_size: 0; it must be"),
    ({"moe_intermediate_size": 0}, "moe_intermediate_size: 0; it must be"),
    ({"first_k_dense_replace": -1}, "first_k_dense_replace: -1; it must be an integer from 0 to 1024"),
    ({"n_routed_experts": 0}, "n_routed_experts: 0; it must be an integer from 1 to 4096"),
    ({"n_routed_experts": 4096}, "n_routed_experts: 4096 in 27 layers; at most 65536"),
    ({"n_shared_experts": -1}, "n_shared_experts: -1; it must be"),
    ({"num_experts_per_tok": 65}, "num_experts_per_tok: 65 is above n_routed_experts, 64"),
    ({"num_experts_per_tok": 0}, "num_experts_per_tok: 0; it must be"),
    ({"num_experts_per_tok": None}, "num_experts_per_tok: None; it must be"),
    ({"topk_method": "noaux_tc"}, "topk_method: 'noaux_tc'; it must be one of greedy, group_limited_greedy"),
    ({"topk_method": "group_limited_greedy", "n_group": 7}, "n_group: 7 does not divide n_routed_experts, 64"),
    ({"topk_method": "group_limited_greedy", "n_group": None}, "n_group: None; it must be"),
    ({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 5}, "topk_group: 5 is above n_group, 4"),
    (
        {"topk_method": "group_limited_greedy", "n_group": 16},
        "topk_group: 1 groups of n_routed_experts / n_group experts",
    ),
    ({"routed_scaling_factor": 0}, "routed_scaling_factor: 0; it must be a number above 0 to 10000"),
    ({"norm_topk_prob": 1}, "norm_topk_prob: 1; it must be true or false"),
    ({"rms_norm_eps": 0}, "rms_norm_eps: 0; it must be a number above 0 to 1"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps: '1e-6'; it must be"),
    ({"max_position_embeddings": 0}, "max_position_embeddings: 0; it must be"),
    ({"rope_theta": 1}, "rope_theta: 1; it must be a number above 1 to 1000000000000"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no'; it must be true or false"),
    ({"bos_token_id": 102400}, "bos_token_id: 102400; it must be an integer from 0 to 102399"),
    (
        {"eos_token_id": [1, 102400]},
        "eos_token_id: [1, 102400]; it must be an integer from 0 to 102399, a list of up to 64",
    ),
    ({"eos_token_id": "</s>"}, "eos_token_id: '</s>'; it must be"),
    ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype: 'float8_e4m3fn'; it must be one of float32, bfloat16, float16"),
    ({"dtype": "float16"}, "dtype: float16, but torch_dtype is bfloat16"),
    ({"attention_bias": True}, "attention_bias: True: attention with biases is not supported; it may be False"),
    ({"attention_bias": 0}, "attention_bias: 0: attention with biases"),
    ({"moe_layer_freq": True}, "moe_layer_freq: True: every layer after the dense ones"),
    ({"mlp_bias": 1}, "mlp_bias: 1: feed-forward layers with biases"),
    ({"hidden_act": "gelu"}, "hidden_act: 'gelu': no other activation is supported; it may be 'silu'"),
    ({"scoring_func": "sigmoid"}, "scoring_func: 'sigmoid': DeepSeek-V2 gates with softmax"),
    ({"moe_layer_freq": 2}, "moe_layer_freq: 2: every layer after the dense ones"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: {'quant_method': 'fp8'}: quantised"),
    ({"architectures": ["DeepseekV2Model"]}, "architectures: ['DeepseekV2Model'] is without DeepseekV2ForCausalLM"),
    ({"architectures": "DeepseekV2ForCausalLM"}, "architectures: 'DeepseekV2ForCausalLM' is without"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5: all of qk_rope_head_dim is rotated"),
]

REQUIRED = [
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "max_position_embeddings",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rms_norm_eps",
    "topk_method",
    "v_head_dim",
    "vocab_size",
    "first_k_dense_replace",
]


class TestRefused:
    """Case 8."""

    @pytest.mark.parametrize("changes, problem", MUTATIONS, ids=[json.dumps(c)[:50] for c, _ in MUTATIONS])
    def test_value(self, changes, problem):
        (found,) = refused(LITE | changes).problems
        assert found.startswith(problem)

    @pytest.mark.parametrize("key", REQUIRED)
    def test_missing(self, key):
        (found,) = refused(without(LITE, key)).problems
        assert found.startswith(f"{key}: missing; it must be ")

    @pytest.mark.parametrize(
        "text, cause",
        [
            ("", "not valid JSON"),
            ("{", "not valid JSON"),
            ("[]", "config.json is not a JSON object"),
            ("null", "config.json is not a JSON object"),
            ('{"model_type": "deepseek_v2", "model_type": "llama"}', "duplicate key 'model_type'"),
            ('{"rope_scaling": {"factor": 1, "factor": 2}}', "duplicate key 'factor'"),
            ('{"rms_norm_eps": NaN}', "NaN is not a JSON number"),
            ('{"rope_theta": -Infinity}', "-Infinity is not a JSON number"),
            ('{"rope_theta": 1e999}', "number 1e999 is out of range"),
            ('{"vocab_size": ' + "9" * 5000 + "}", "does not fit 64 bits"),
            ('{"vocab_size": 9223372036854775808}', "does not fit 64 bits"),
            ('{"a": "\\ud800"}', "lone surrogate"),
            (b'{"a": "\xff"}', "not valid JSON"),
            (b"\xef\xbb\xbf{}", "not valid JSON"),
            (b"\x80\x04\x95pickle", "not valid JSON"),
        ],
    )
    def test_malformed(self, text, cause):
        assert cause in refused(text).cause

    def test_all_problems_at_once(self):
        changes = {
            "vocab_size": 0,
            "hidden_act": "gelu",
            "num_key_value_heads": 3,
            "qk_rope_head_dim": 7,
            "num_experts_per_tok": 100,
            "topk_method": "noaux_tc",
            "eos_token_id": -1,
            "quantization_config": {},
            "rms_norm_eps": 2,
        }
        config = without(LITE | changes | {"rope_scaling": YARN | {"factor": 0, "beta_slow": 0}}, "kv_lora_rank")
        keys = [p.split(":")[0] for p in refused(config).problems]
        assert sorted(keys) == sorted([*changes, "rope_scaling.factor", "rope_scaling.beta_slow", "kv_lora_rank"])

    def test_missing_file(self, tmp_path):
        folder = write(tmp_path / "m", tiny_tensors())
        (folder / "config.json").unlink()
        with pytest.raises(ModelError, match=r"has no config\.json"):
            Checkpoint.open(folder)


FOREIGN = {
    "deepseek_v3": {"architectures": ["DeepseekV3ForCausalLM"], "quantization_config": {"quant_method": "fp8"}},
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "qwen2_moe": {"architectures": ["Qwen2MoeForCausalLM"]},
    "deepseek_vl_v2": {"architectures": ["DeepseekVLV2ForCausalLM"], "language_config": {"model_type": "deepseek_v2"}},
    "mixtral": {},
}


class TestForeign:
    """Case 9."""

    @pytest.mark.parametrize("kind", FOREIGN)
    def test_named_at_once(self, kind, tmp_path):
        folder = write(tmp_path / "m", tiny_tensors())
        (folder / "config.json").write_text(json.dumps({"model_type": kind} | FOREIGN[kind]))
        start = time.monotonic()
        with pytest.raises(ModelError) as e:
            Checkpoint.open(folder)
        assert time.monotonic() - start < 1
        assert e.value.problems == () and f"is '{kind}'" in e.value.cause
        assert "supported: deepseek_v2" in e.value.remedy
        assert all(a in e.value.cause for a in FOREIGN[kind].get("architectures", ()))

    def test_before_anything_heavy_is_imported(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        code = (
            "import sys; from dsv2_compile.checkpoint import Checkpoint; from dsv2_compile.errors import ModelError\n"
            "try: Checkpoint.open(sys.argv[1])\n"
            "except ModelError: print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
        )
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
        assert run.stdout == "[]\n", run.stderr

    @pytest.mark.parametrize("kind", [None, 5, ["deepseek_v2"], {"a": 1}, "DEEPSEEK_V2", ""])
    def test_no_type(self, kind):
        assert "model_type in config.json is " in refused(TINY | {"model_type": kind}).cause

    def test_absent_type(self):
        assert "model_type in config.json is missing" in refused(without(TINY, "model_type")).cause
