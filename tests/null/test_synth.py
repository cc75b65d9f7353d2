"""Made-up checkpoints: read by transformers, reproducible, and refused where they would do harm."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dsv2_compile.checkpoint import noise
from dsv2_compile.checkpoint.presets import PRESETS
from dsv2_compile.checkpoint.synth import INDEX, SynthReport, SynthRequest, synth
from dsv2_compile.errors import ResourceError, UsageError
from dsv2_compile.model.layout import checkpoint_tensors

SMALL = {"layers": 2, "hidden_size": 64, "vocab": 300, "intermediate_size": 64, "moe_intermediate_size": 32}


def small(output: Path, preset: str = "tiny", **changes) -> SynthReport:
    overrides = SMALL | changes.pop("overrides", {})
    return synth(SynthRequest(output, preset, overrides, **changes))


def written(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor, found through the index as a reader would."""
    index = json.loads((directory / INDEX).read_text())
    found = {}
    for name, file in index["weight_map"].items():
        with safe_open(directory / file, "pt") as f:
            found[name] = f.get_tensor(name)
    return found


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def stacked(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """What transformers calls ``name``, from the published tensors."""
    if name in tensors:
        return tensors[name]
    prefix, kind = name.rsplit(".", 1)
    experts = range(sum(k.startswith(f"{prefix}.") and k.endswith(".down_proj.weight") for k in tensors))
    if kind == "down_proj":
        return torch.stack([tensors[f"{prefix}.{e}.down_proj.weight"] for e in experts])
    assert kind == "gate_up_proj", name
    pairs = [[tensors[f"{prefix}.{e}.{n}_proj.weight"] for n in ("gate", "up")] for e in experts]
    return torch.stack([torch.cat(p) for p in pairs])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("preset", ["tiny", "tiny-lite"])
def test_transformers_loads_every_parameter(preset, dtype, tmp_path):
    from transformers import AutoConfig, DeepseekV2ForCausalLM

    synth(SynthRequest(tmp_path / "m", preset, {"layers": 2}, dtype, seed=3, max_shard_bytes=2 << 20))
    config = AutoConfig.from_pretrained(tmp_path / "m")
    model, info = DeepseekV2ForCausalLM.from_pretrained(
        tmp_path / "m", config=config, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tensors = written(tmp_path / "m")
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == sum(t.numel() for t in tensors.values())
    for name, parameter in parameters.items():
        assert torch.equal(parameter, stacked(tensors, name)), name


def test_transformers_reads_the_settings(tmp_path):
    from transformers import AutoConfig

    synth(SynthRequest(tmp_path / "m"))
    theirs, ours = AutoConfig.from_pretrained(tmp_path / "m"), PRESETS["tiny"]
    same = set(vars(ours)) - {"rope", "eos_token_ids", "norm_topk_prob"}
    assert {k: getattr(theirs, k) for k in same} == {k: getattr(ours, k) for k in same}
    assert theirs.eos_token_id == ours.eos_token_ids[0]
    rope = dict(theirs.rope_parameters)
    assert (rope.pop("rope_type"), rope.pop("rope_theta")) == ("yarn", ours.rope.theta)
    rope.pop("type", None)
    assert rope == {k: getattr(ours.rope, k) for k in rope} and len(rope) == 6


def test_shards_and_index(tmp_path):
    report = small(tmp_path / "m", max_shard_bytes=100_000)
    shards = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert report.shards == len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    tensors = written(tmp_path / "m")
    assert {n: tuple(t.shape) for n, t in tensors.items()} == checkpoint_tensors(report.config)
    assert index["metadata"]["total_size"] == report.bytes == sum(t.nbytes for t in tensors.values())
    assert report.parameters == sum(t.numel() for t in tensors.values()) and report.tensors == len(tensors)
    data = {s: sum(t.nbytes for n, t in tensors.items() if index["weight_map"][n] == s) for s in shards}
    largest = max(t.nbytes for t in tensors.values())
    assert max(data.values()) <= max(100_000, largest)
    assert sorted(report.files) == sorted(p.name for p in (tmp_path / "m").iterdir())


def test_parameter_counts_of_the_published_sizes():
    counts = {n: sum(map(math.prod, checkpoint_tensors(PRESETS[n]).values())) for n in ("v2", "lite")}
    assert {n: round(c / 1e9, 2) for n, c in counts.items()} == {"v2": 235.74, "lite": 15.71}


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        small(tmp_path / name, seed=seed)
    a, b, c = (digests(tmp_path / n) for n in "abc")
    assert a == b
    assert {n for n in a if a[n] != c[n]} == {"model-00001-of-00001.safetensors"}


def test_shard_size_and_neighbours_do_not_change_a_tensor(tmp_path):
    small(tmp_path / "a")
    small(tmp_path / "b", max_shard_bytes=100_000, overrides={"layers": 3, "experts": 20})
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], a[name.replace("experts.2", "experts.3")])


def test_blocks_are_seeded_apart(monkeypatch):
    """A tensor of several blocks does not repeat itself, and its last block may be short."""
    monkeypatch.setattr(noise, "BLOCK", 4096)
    shape = (3, 4095)
    data = b"".join(noise.blocks({"x.weight": shape}, PRESETS["tiny"], "float32", 0))
    values = np.frombuffer(data, np.float32)
    assert values.size == math.prod(shape)
    assert not np.array_equal(values[:4096], values[4096:8192])
    assert abs(np.corrcoef(values[:4096], values[4096:8192])[0, 1]) < 0.06


@pytest.mark.parametrize("preset", ["tiny", "tiny-lite"])
def test_activations_stay_of_order_one_and_logits_have_margins(preset, tmp_path):
    """Ten layers: the last hidden state is no larger than a few embeddings, routers and logits prefer."""
    from transformers import DeepseekV2ForCausalLM

    synth(SynthRequest(tmp_path / "m", preset, {"layers": 10}, "float32"))
    model = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    routers: list[torch.Tensor] = []
    for layer in model.model.layers[1:]:
        layer.mlp.gate.register_forward_hook(
            lambda m, i, o: routers.append(i[0].reshape(-1, m.weight.shape[1]) @ m.weight.T)
        )
    tokens = torch.randint(0, 2040, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True)
    sizes = [h.pow(2).mean().sqrt().item() for h in out.hidden_states[:-1]]
    assert 0.8 < sizes[0] < 1.2 and max(sizes) < 4
    assert sizes[-1] > 1.1 * sizes[0], "the layers add next to nothing"
    top2 = out.logits.topk(2).values
    assert (top2[..., 0] - top2[..., 1]).median() > 0.2
    assert out.logits.argmax(-1).unique().numel() > 20
    shares = torch.stack(routers).softmax(-1)
    assert shares.max(-1).values.mean() > 2.5 / shares.shape[-1]
    assert (shares.mean((0, 1)) > 0).all() and len(routers) == 9


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("huge", {}, "preset"),
        ("tiny", {"colour": 3}, "colour"),
        ("tiny", {"layers": 0}, "num_hidden_layers"),
        ("tiny", {"experts": 18}, "n_group"),
        ("tiny", {"num_experts_per_tok": 17}, "num_experts_per_tok"),
        ("tiny", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("tiny", {"topk_group": 5}, "topk_group"),
        ("tiny", {"qk_rope_head_dim": 7}, "qk_rope_head_dim"),
        ("tiny", {"eos_token_ids": (5000,)}, "eos_token_id"),
        ("tiny", {"eos_token_id": 2046}, "one id"),
        ("tiny", {"eos_token_ids": "last"}, "eos_token_id"),
        ("tiny", {"vocab": "many"}, "vocab_size"),
        ("tiny", {"rope": "none"}, "no setting rope"),
        ("tiny", {"topk_method": "noaux_tc"}, "topk_method"),
        ("tiny", {"vocab": 200}, "256 bytes"),
    ],
)
def test_refused_settings(preset, overrides, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        synth(SynthRequest(tmp_path / "m", preset, overrides))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"dtype": "int8"}, {"seed": -1}, {"max_shard_bytes": 0}])
def test_refused_requests(changes, tmp_path):
    with pytest.raises(UsageError):
        small(tmp_path / "m", **changes)
    assert not list(tmp_path.iterdir())


def test_existing_output_needs_force_and_must_be_a_checkpoint(tmp_path):
    out = tmp_path / "m"
    small(out, seed=1)
    before = digests(out)
    with pytest.raises(UsageError, match="--force"):
        small(out, seed=2)
    assert digests(out) == before
    (out / "stale.safetensors").write_bytes(b"old")
    small(out, seed=2, force=True)
    assert digests(out) != before and not (out / "stale.safetensors").exists()
    (out / "photos").mkdir()
    with pytest.raises(UsageError, match="not a checkpoint"):
        small(out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_file_or_link_at_the_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="not a directory"):
            small(tmp_path / name, force=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_is_known_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match="needs"):
        small(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_failure_on_the_way_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch):
    small(tmp_path / "m", seed=1)
    before = digests(tmp_path / "m")

    def stop(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth(SynthRequest(tmp_path / "m", "tiny", SMALL, seed=2, force=True), stop)
    assert digests(tmp_path / "m") == before and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_a_killed_run_left_is_cleared(tmp_path):
    stage = tmp_path / ".m.synth"
    stage.mkdir()
    (stage / "model-00001-of-00009.safetensors").write_bytes(b"half")
    report = small(tmp_path / "m")
    assert sorted(report.files) == sorted(p.name for p in (tmp_path / "m").iterdir())
    assert not stage.exists()


def test_two_at_once_are_refused(tmp_path):
    def again(what: str, done: int, total: int) -> None:
        if done == 0:
            with pytest.raises(UsageError, match="Another synth"):
                small(tmp_path / "m")

    synth(SynthRequest(tmp_path / "m", "tiny", SMALL), again)
    assert len(digests(tmp_path / "m")) == 6


def test_progress_ends_at_the_total(tmp_path):
    seen: list[tuple[int, int]] = []
    report = synth(SynthRequest(tmp_path / "m", "tiny", SMALL), lambda what, done, total: seen.append((done, total)))
    assert seen[0] == (0, report.bytes) and seen[-1] == (report.bytes, report.bytes)
    assert seen == sorted(seen)
