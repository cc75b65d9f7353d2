"""Cases 4 and 6: the index, the shards and config.json contradict each other. Every contradiction is listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.errors import ModelError
from tests.checkpoints import TINY, read_index, shard_name, stored_by_library, tiny_tensors, write, write_index
from tests.null.test_checkpoint_read import EXPERT, stack

NORM, HEAD, GATE = "model.norm.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ModelError) as e:
        Checkpoint.open(folder)
    assert e.value.exit_code == 3
    return e.value.problems


@pytest.fixture
def sharded(tmp_path) -> Path:
    return write(tmp_path / "m", tiny_tensors(), shards=3)


class TestIndex:
    """Case 4."""

    def test_missing_shard(self, sharded):
        (sharded / shard_name(1, 3)).unlink()
        assert problems(sharded) == (f"{shard_name(1, 3)} (shard 2 of 3): No such file or directory",)

    def test_tensor_in_two_shards(self, sharded):
        index = read_index(sharded)
        other = next(s for s in index.values() if s != index[NORM])
        save_file(load_file(sharded / other) | {NORM: torch.zeros(12)}, sharded / other)
        assert problems(sharded) == (f"{other}: it holds '{NORM}', which the index places in '{index[NORM]}'",)

    def test_tensor_that_the_index_does_not_name(self, sharded):
        index = read_index(sharded)
        shard = index.pop(NORM)
        write_index(sharded, index)
        assert problems(sharded) == (
            f"{shard}: it holds '{NORM}', which the index does not name",
            f"{NORM}: missing; expected [12]",
        )

    def test_tensor_that_the_shard_does_not_hold(self, sharded):
        index = read_index(sharded)
        tensors = load_file(sharded / index[NORM])
        del tensors[NORM]
        save_file(tensors, sharded / index[NORM])
        expected = f"model.safetensors.index.json: it places '{NORM}' in '{index[NORM]}', which does not hold it"
        assert problems(sharded) == (expected,)

    def test_everything_at_once(self, sharded):
        """A missing shard, a cut one, a tensor too many in the third and a wrong shape there."""
        (sharded / shard_name(0, 3)).unlink()
        cut = sharded / shard_name(1, 3)
        cut.write_bytes(cut.read_bytes()[:-1])
        tensors = load_file(sharded / shard_name(2, 3))
        name = min(n for n, t in tensors.items() if t.dim() == 2)
        save_file(tensors | {"extra": torch.ones(1), name: torch.ones(1)}, sharded / shard_name(2, 3))
        found = problems(sharded)
        assert len(found) == 4
        for text in (
            "shard 1 of 3): No such file",
            "shard 2 of 3): incomplete",
            "holds 'extra'",
            f"{name}: shape [1], ",
        ):
            assert sum(text in p for p in found) == 1

    def test_shards_of_two_sets(self, sharded):
        index = read_index(sharded)
        (sharded / shard_name(0, 3)).rename(sharded / shard_name(0, 5))
        write_index(sharded, {n: s.replace(shard_name(0, 3), shard_name(0, 5)) for n, s in index.items()})
        expected = "model.safetensors.index.json: shards of more than one set: '-of-00003', '-of-00005'"
        assert problems(sharded) == (expected,)

    @pytest.mark.parametrize(
        "text, cause",
        [
            ("{", "index.json cannot be read: not valid JSON"),
            ("[]", "has no weight_map"),
            ("{}", "has no weight_map"),
            ('{"weight_map": {}}', "has no weight_map"),
            ('{"weight_map": {"a": 5}}', "has no weight_map"),
            ('{"weight_map": ["a"]}', "has no weight_map"),
            ('{"weight_map": {"a": "x", "a": "y"}}', "duplicate key 'a'"),
            (json.dumps({"weight_map": {str(i): str(i) for i in range(5000)}}), "names 5000 files, the limit is 4096"),
        ],
    )
    def test_malformed(self, text, cause, sharded):
        (sharded / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ModelError) as e:
            Checkpoint.open(sharded)
        assert cause in e.value.cause and e.value.exit_code == 3

    def test_two_sets_of_weights(self, sharded):
        save_file(tiny_tensors(), sharded / "model.safetensors")
        with pytest.raises(ModelError, match="two sets of weights"):
            Checkpoint.open(sharded)

    def test_no_index(self, sharded):
        (sharded / "model.safetensors.index.json").unlink()
        with pytest.raises(ModelError, match=r"but no model\.safetensors\.index\.json"):
            Checkpoint.open(sharded)

    def test_no_weights(self, tmp_path):
        (write(tmp_path / "m", tiny_tensors()) / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="has no weights"):
            Checkpoint.open(tmp_path / "m")

    def test_an_empty_file_of_weights(self, tmp_path):
        assert len(problems(write(tmp_path / "m", {}))) == len(tiny_tensors())

    def test_a_long_list_is_cut(self, tmp_path):
        found = problems(write(tmp_path / "m", {f"x{i}": torch.ones(1) for i in range(500)}))
        assert len(found) == 101 and found[-1] == f"and {500 + len(tiny_tensors()) - 100} more"


class TestAgainstConfig:
    """Case 6."""

    @pytest.mark.parametrize(
        "name, tensor, expected",
        [
            (NORM, torch.ones(13), f"{NORM}: shape [13], expected [12]"),
            (HEAD, torch.ones(12, 17), f"{HEAD}: shape [12, 17], expected [17, 12]"),
            (HEAD, torch.ones(204), f"{HEAD}: shape [204], expected [17, 12]"),
            (HEAD, torch.ones(0), f"{HEAD}: shape [0], expected [17, 12]"),
            (NORM, torch.ones(12, dtype=torch.int64), f"{NORM}: dtype I64 is not one of F32, BF16, F16"),
            (HEAD, torch.ones(17, 12).to(torch.float8_e4m3fn), f"{HEAD}: dtype F8_E4M3 is not one of F32, BF16, F16"),
            (HEAD, torch.ones(17, 12, dtype=torch.float64), f"{HEAD}: dtype F64 is not one of F32, BF16, F16"),
            (HEAD, torch.ones(17, 12, dtype=torch.bfloat16), f"{HEAD}: dtype BF16 among tensors of F32"),
            (NORM, torch.ones(12, dtype=torch.float16), f"{NORM}: dtype F16 among tensors of F32"),
            (
                "model.layers.2.input_layernorm.weight",
                torch.ones(12),
                "model.layers.2.input_layernorm.weight: not a tensor",
            ),
            ("transformer.wte\n", torch.ones(1), "transformer.wte\\n: not a tensor of this model"),
            (
                "model.layers.0.mlp.experts.down_proj",
                torch.ones(3, 12, 4),
                "model.layers.0.mlp.experts.down_proj: not a ",
            ),
        ],
    )
    def test_one_tensor(self, name, tensor, expected, tmp_path):
        (found,) = problems(write(tmp_path / "m", tiny_tensors() | {name: tensor}))
        assert found.startswith(expected)

    def test_missing(self, tmp_path):
        tensors = tiny_tensors()
        for name in (NORM, f"{EXPERT}.2.up_proj.weight"):
            del tensors[name]
        expected = {f"{NORM}: missing; expected [12]", f"{EXPERT}.2.up_proj.weight: missing; expected [4, 12]"}
        assert set(problems(write(tmp_path / "m", tensors))) == expected

    def test_another_config(self, tmp_path):
        """config.json of a model with another latent: every tensor that has it is named."""
        found = problems(write(tmp_path / "m", tiny_tensors(), TINY | {"kv_lora_rank": 8}))
        parts = {p.split(": ")[0].removeprefix("model.layers.").split(".", 1)[1] for p in found}
        names = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
        assert len(found) == 6 and parts == {f"self_attn.{n}.weight" for n in names}

    def test_float32_gate_and_norms_among_16_bit(self, tmp_path):
        config = TINY | {"torch_dtype": "bfloat16"}
        tensors = tiny_tensors(config, torch.bfloat16)
        tensors |= {n: t.float() for n, t in tensors.items() if "norm" in n or n == GATE}
        checkpoint = Checkpoint.open(write(tmp_path / "m", tensors, config))
        assert checkpoint.dtype == "bfloat16" and checkpoint.tensor(GATE).dtype == torch.float32
        tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
        assert problems(write(tmp_path / "m", tensors, config)) == (f"{HEAD}: dtype F32 among tensors of BF16",)

    def test_another_dtype_than_config_says_is_noted(self, tmp_path):
        checkpoint = Checkpoint.open(write(tmp_path / "m", tiny_tensors(), TINY | {"torch_dtype": "bfloat16"}))
        assert (
            checkpoint.dtype == "float32" and "config.json says bfloat16, the tensors are float32" in checkpoint.notes
        )


class TestStacked:
    def test_shape(self, tmp_path):
        tensors = stack(tiny_tensors())
        tensors[f"{EXPERT}.gate_up_proj"] = tensors[f"{EXPERT}.gate_up_proj"].transpose(1, 2).contiguous()
        expected = f"{EXPERT}.gate_up_proj: shape [3, 12, 8], expected [3, 8, 12]"
        assert problems(write(tmp_path / "m", tensors)) == (expected,)

    def test_dtype(self, tmp_path):
        tensors = stack(tiny_tensors())
        tensors[f"{EXPERT}.down_proj"] = tensors[f"{EXPERT}.down_proj"].to(torch.int32)
        expected = f"{EXPERT}.down_proj: dtype I32 is not one of F32, BF16, F16"
        assert problems(write(tmp_path / "m", tensors)) == (expected,)

    def test_twice(self, tmp_path):
        tensors = tiny_tensors()
        assert problems(write(tmp_path / "m", tensors | stack(tensors))) == (
            f"{EXPERT}.down_proj: 3 of its experts are there a second time, as {EXPERT}.0.down_proj.weight",
            f"{EXPERT}.gate_up_proj: 6 of its experts are there a second time, as {EXPERT}.0.gate_proj.weight",
        )

    def test_in_a_shard_that_is_missing(self, tmp_path):
        folder = write(tmp_path / "m", stack(tiny_tensors()), shards=2)
        shard = read_index(folder)[f"{EXPERT}.gate_up_proj"]
        (folder / shard).unlink()
        assert len(problems(folder)) == 1

    def test_half_of_it(self, tmp_path):
        tensors = stack(tiny_tensors())
        del tensors[f"{EXPERT}.down_proj"]
        assert len(problems(write(tmp_path / "m", tensors))) == TINY["n_routed_experts"]


def test_the_oracle_of_these_tests_is_a_good_checkpoint(sharded):
    assert stored_by_library(sharded).keys() == tiny_tensors().keys()
    Checkpoint.open(sharded)
