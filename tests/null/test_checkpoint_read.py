"""What is read, against the files that transformers wrote and the safetensors library."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.config_json import parse
from dsv2_compile.errors import ModelError, UsageError
from dsv2_compile.model.layout import checkpoint_tensors
from tests.checkpoints import (
    TINY,
    V2,
    join,
    same_bits,
    shard_name,
    split,
    stored_by_library,
    tiny_tensors,
    write,
    write_index,
)
from tests.oracles import CONFIGS, transformers_checkpoint

EXPERT = "model.layers.1.mlp.experts"


def stack(tensors: dict[str, torch.Tensor], config=TINY) -> dict[str, torch.Tensor]:
    """The same weights with the experts of every layer in two tensors, as transformers holds them in memory."""
    out = {name: t for name, t in tensors.items() if ".mlp.experts." not in name}
    for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {
            p: [tensors[f"{prefix}.{e}.{p}_proj.weight"] for e in range(config["n_routed_experts"])]
            for p in ("gate", "up", "down")
        }
        pairs = zip(parts["gate"], parts["up"], strict=True)
        out[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        out[f"{prefix}.down_proj"] = torch.stack(parts["down"])
    return out


def assert_holds(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    names = checkpoint_tensors(checkpoint.config)
    assert len(names) > 20
    wrong = [name for name in names if not same_bits(checkpoint.tensor(name), tensors[name])]
    assert wrong == []


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_checkpoints_are_read_bit_for_bit(name, tmp_path):
    model, config, _ = transformers_checkpoint(name, tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    shards = list((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    whole, sharded = Checkpoint.open(tmp_path / "whole"), Checkpoint.open(tmp_path / "shards")
    assert whole.config == sharded.config == config
    tensors = stored_by_library(tmp_path / "whole")
    assert_holds(whole, tensors)
    assert_holds(sharded, tensors)
    assert whole.weights_sha256() == sharded.weights_sha256()
    unused = {n for n, t in tensors.items() if not t.numel()}
    assert set(checkpoint_tensors(config)) == set(tensors) - unused
    note = f"not read, as empty or derived (rotary_emb.inv_freq): {len(unused)} tensors"
    assert whole.notes == ((note,) if unused else ())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_stored_dtype_stays(dtype, tmp_path):
    config = TINY | {"torch_dtype": dtype}
    tensors = tiny_tensors(config, getattr(torch, dtype))
    checkpoint = Checkpoint.open(write(tmp_path / dtype, tensors, config, shards=3))
    assert checkpoint.dtype == dtype and checkpoint.name == dtype and checkpoint.revision is None
    assert_holds(checkpoint, tensors)


def test_stacked_experts_have_their_published_names(tmp_path):
    tensors = tiny_tensors()
    plain = Checkpoint.open(write(tmp_path / "a", tensors))
    stacked = Checkpoint.open(write(tmp_path / "b", stack(tensors)))
    assert_holds(stacked, tensors)
    assert plain.weights_sha256() == stacked.weights_sha256()
    gate = stacked.tensor(f"{EXPERT}.2.gate_proj.weight")
    start = gate.untyped_storage().data_ptr()
    assert start == stacked.tensor("model.norm.weight").untyped_storage().data_ptr(), "not a view of one mapping"


def written_out(tensors: dict[str, torch.Tensor]) -> str:
    """The hash of float32 tensors, as its description says."""
    whole = ""
    for name in sorted(tensors):
        data = hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()
        whole += f"{name} F32 {list(tensors[name].shape)} {data}\n"
    return hashlib.sha256(whole.encode()).hexdigest()


def test_hash_depends_on_values_and_dtype_only(tmp_path):
    tensors = tiny_tensors()
    hashes = [Checkpoint.open(write(tmp_path / "a", tensors)).weights_sha256()]
    hashes.append(Checkpoint.open(write(tmp_path / "elsewhere", tensors, shards=2)).weights_sha256())
    assert hashes[0] == hashes[1] == written_out(tensors)
    tensors["model.norm.weight"][3] += 1
    hashes.append(Checkpoint.open(write(tmp_path / "a", tensors)).weights_sha256())
    hashes.append(Checkpoint.open(write(tmp_path / "a", tiny_tensors(dtype=torch.bfloat16))).weights_sha256())
    assert len(set(hashes)) == 3


def test_views_are_not_copies_and_cost_no_memory(tmp_path):
    config = TINY | {"vocab_size": 1_000_000, "eos_token_id": 999_999}
    checkpoint = Checkpoint.open(write(tmp_path / "m", tiny_tensors(config), config))

    def resident() -> int:
        """Pages of the process that are of no file."""
        _, whole, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return whole - shared

    before = resident()
    views = [checkpoint.tensor(n) for n in checkpoint_tensors(checkpoint.config)]
    assert sum(v.nbytes for v in views) > 90 << 20
    assert (resident() - before) * os.sysconf("SC_PAGE_SIZE") < 5 << 20, "anonymous memory grew"


def test_a_checkpoint_of_the_size_of_v2(tmp_path):
    """472 GB in 55 shards, all holes: what opening costs follows from the headers. In a process of its own."""
    shapes = checkpoint_tensors(parse(json.dumps(V2).encode()).model)
    assert len(shapes) > 28_000
    folder = write(tmp_path / "v2", {}, V2)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(55):
        batch = list(shapes)[i::55]
        header, at = {}, 0
        for name in batch:
            end = at + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, end]}
            at = end
        file = folder / shard_name(i, 55)
        file.write_bytes(join(header, b""))
        os.truncate(file, file.stat().st_size + at)
        weight_map |= dict.fromkeys(batch, file.name)
    write_index(folder, weight_map)
    code = """
import sys, time, torch
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.config_json import parse
used = lambda: int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("RssAnon")))
before, start = used(), time.monotonic()
c = Checkpoint.open(sys.argv[1])
seconds = time.monotonic() - start
last = c.tensor("model.layers.59.mlp.experts.159.down_proj.weight")
print(seconds, used() - before, c.dtype, list(last.shape), float(last[-1, -1]))
"""
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    seconds, kilobytes, *rest = run.stdout.split(maxsplit=2)
    assert rest == ["bfloat16 [5120, 1536] 0.0\n"]
    assert float(seconds) < 10 and int(kilobytes) < 80_000, run.stdout


def test_unaligned_data_are_read(tmp_path):
    """A header of odd length: the library pads its own, other writers do not."""
    tensors = tiny_tensors()
    folder = write(tmp_path / "m", tensors)
    header, data = split((folder / "model.safetensors").read_bytes())
    text = json.dumps(header)
    for pad in range(4):
        (folder / "model.safetensors").write_bytes(join(text + " " * pad, data))
        assert_holds(Checkpoint.open(folder), tensors)


class TestNonfinite:
    """Case 7: NaN and infinity are counted exactly, and refused only when that is asked for."""

    def spoilt(self, folder, dtype):
        """-> (checkpoint folder, expected counts)"""
        tensors = tiny_tensors(dtype=dtype)
        nan, inf = float("nan"), float("inf")
        tensors["model.norm.weight"][[0, 5]] = nan
        tensors["lm_head.weight"].view(-1)[[3, 7, 100, -1]] = torch.tensor([inf, -inf, nan, inf]).to(dtype)
        tensors[f"{EXPERT}.1.up_proj.weight"][2] = inf
        width = TINY["hidden_size"]
        expected = {"model.norm.weight": (2, 0), "lm_head.weight": (1, 3), f"{EXPERT}.1.up_proj.weight": (0, width)}
        return write(folder, stack(tensors) if dtype == torch.float16 else tensors, shards=2), expected

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_counts_are_exact(self, dtype, tmp_path):
        folder, expected = self.spoilt(tmp_path / "m", dtype)
        seen = []
        assert Checkpoint.open(folder).nonfinite(lambda *at: seen.append(at)) == expected
        assert seen[-1][1] == seen[-1][2] == sum(t.nbytes for t in tiny_tensors(dtype=dtype).values())

    def test_strict_names_the_tensors(self, tmp_path):
        folder, expected = self.spoilt(tmp_path / "m", torch.float32)
        with pytest.raises(ModelError, match="3 tensors hold NaN") as e:
            Checkpoint.open(folder, strict=True)
        assert set(e.value.problems) == {f"{n}: {nan} NaN, {inf} infinite" for n, (nan, inf) in expected.items()}

    def test_finite_weights_pass(self, tmp_path):
        tensors = tiny_tensors()
        tensors["model.norm.weight"][0] = torch.finfo(torch.float32).max
        tensors["model.norm.weight"][1] = 1e-42
        assert Checkpoint.open(write(tmp_path / "m", tensors), strict=True).nonfinite() == {}

    def test_a_tensor_of_several_chunks(self, tmp_path):
        config = TINY | {"vocab_size": 200_000}
        tensors = tiny_tensors(config)
        tensors["lm_head.weight"].view(-1)[[0, (1 << 20) - 1, 1 << 20, -1]] = float("nan")
        assert Checkpoint.open(write(tmp_path / "m", tensors, config)).nonfinite() == {"lm_head.weight": (4, 0)}


class TestTied:
    config = TINY | {"tie_word_embeddings": True}

    def test_no_head(self, tmp_path):
        tensors = tiny_tensors(self.config)
        assert "lm_head.weight" not in tensors
        assert Checkpoint.open(write(tmp_path / "m", tensors, self.config)).config.tie_word_embeddings

    def test_an_equal_head_is_noted(self, tmp_path):
        tensors = tiny_tensors(self.config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        notes = Checkpoint.open(write(tmp_path / "m", tensors, self.config)).notes
        assert any("lm_head.weight is stored beside tied embeddings" in n for n in notes)

    def test_the_same_bytes_of_another_dtype_are_another_head(self, tmp_path):
        tensors = tiny_tensors(self.config, torch.bfloat16)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone().view(torch.float16)
        with pytest.raises(ModelError, match=r"lm_head\.weight: differs"):
            Checkpoint.open(write(tmp_path / "m", tensors, self.config))

    def test_another_head_is_refused(self, tmp_path):
        tensors = tiny_tensors(self.config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += 1
        with pytest.raises(ModelError) as e:
            Checkpoint.open(write(tmp_path / "m", tensors, self.config))
        assert e.value.problems == (
            "lm_head.weight: differs from model.embed_tokens.weight, but tie_word_embeddings is true",
        )


def test_fields_of_a_checkpoint(tmp_path):
    folder = write(tmp_path / "m", tiny_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)})
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 3], "do_sample": true}')
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "README.md").write_text("text")
    (folder / "training_args.bin").write_bytes(b"")
    save_file({"a": torch.ones(1)}, folder / "consolidated.safetensors")
    c = Checkpoint.open(str(folder))
    assert [p.name for p in c.aux_files] == ["config.json", "generation_config.json", "special_tokens_map.json"]
    assert all(p.parent == c.path == folder for p in c.aux_files)
    assert c.config.eos_token_ids == (1, 3), "generation_config.json stands before config.json"
    assert c.notes == (
        "code of the checkpoint is not executed: what auto_map in config.json names",
        "not read: 'consolidated.safetensors', 'training_args.bin'",
        "not read, as empty or derived (rotary_emb.inv_freq): 1 tensors",
    )
    with pytest.raises(KeyError):
        c.tensor("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert len(load_file(folder / "model.safetensors")) == len(checkpoint_tensors(c.config)) + 1


@pytest.mark.parametrize("model", ["./not/there", "nowhere", "/etc/passwd", "a/b/c", "../x/y", "a\0b", "", "x" * 5000])
def test_neither_a_directory_nor_a_hub_id(model):
    with pytest.raises(UsageError):
        Checkpoint.open(model)


def test_revision_of_a_directory(tmp_path):
    with pytest.raises(UsageError, match="--revision has no effect"):
        Checkpoint.open(write(tmp_path / "m", tiny_tensors()), revision="main")
