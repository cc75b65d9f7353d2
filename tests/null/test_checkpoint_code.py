"""Cases 10 and 11: nothing in a checkpoint is executed. Each canary would leave a file behind."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.errors import Dsv2Error, ModelError
from tests.checkpoints import TINY, tiny_tensors, write


class Bomb:
    """Unpickling it writes ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "fired"))


def script(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').write('fired')\nclass A: pass\n"


def auto_map(folder: Path, canary: Path) -> None:
    (folder / "modeling_deepseek.py").write_text(script(canary))
    (folder / "configuration_deepseek.py").write_text(script(canary))


def init(folder: Path, canary: Path) -> None:
    for name in ("__init__.py", "sitecustomize.py", "conftest.py", "torch.py", "tokenizers.py", "json.py"):
        (folder / name).write_text(script(canary))


def attention(folder: Path, canary: Path) -> None:
    auto_map(folder, canary)
    names = ("_attn_implementation_internal", "attn_implementation", "_attn_implementation", "_experts_implementation")
    config = TINY | dict.fromkeys(names, f"{folder.name}/kernel:forward")
    (folder / "config.json").write_text(json.dumps(config))


def tokenizer_code(folder: Path, canary: Path) -> None:
    (folder / "tokenization_deepseek_fast.py").write_text(script(canary))
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_deepseek_fast.A", None]}, "tokenizer_class": "A"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def template(folder: Path, canary: Path) -> None:
    text = "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}".replace("CANARY", str(canary))
    (folder / "chat_template.jinja").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))


def generation_code(folder: Path, canary: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(script(canary))
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": ".", "eos_token_id": 1}))


CANARIES = [auto_map, init, attention, tokenizer_code, template, generation_code]


@pytest.mark.parametrize("plant", CANARIES)
def test_code_is_not_executed(plant, tmp_path, monkeypatch):
    """Case 10: also with the checkpoint as the working directory."""
    folder, canary = write(tmp_path / "m", tiny_tensors()), tmp_path / "canary"
    plant(folder, canary)
    monkeypatch.chdir(folder)
    checkpoint = Checkpoint.open(".")
    checkpoint.nonfinite()
    assert not canary.exists()
    scripts = sorted(p.name for p in folder.glob("*.py"))
    (note,) = [n for n in checkpoint.notes if n.startswith("code of the checkpoint is not executed: ")]
    assert note.endswith(", ".join(scripts) or "what auto_map in config.json names")
    assert not any(p.suffix == ".py" for p in checkpoint.aux_files)


def test_the_canary_would_fire(tmp_path):
    exec(script(tmp_path / "code"))
    pickle.loads(pickle.dumps(Bomb(tmp_path / "pickle")))
    assert (tmp_path / "code").exists() and (tmp_path / "pickle").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused(name, tmp_path):
    """Case 11."""
    folder, canary = write(tmp_path / "m", tiny_tensors()), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(canary)}, folder / name)
    with zipfile.ZipFile(folder / name) as f:
        assert any(b"write_text" in f.read(n) for n in f.namelist())
    with pytest.raises(ModelError) as e:
        Checkpoint.open(folder)
    assert e.value.exit_code == 3 and repr(name) in e.value.cause and "loading them runs code" in e.value.cause
    assert "save_pretrained" in e.value.remedy
    assert not canary.exists()


def test_pickled_weights_beside_others_are_not_read(tmp_path):
    folder, canary = write(tmp_path / "m", tiny_tensors()), tmp_path / "canary"
    torch.save({"weight": Bomb(canary)}, folder / "pytorch_model.bin")
    assert "not read: 'pytorch_model.bin'" in Checkpoint.open(folder).notes
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_pickle_under_another_name(name, tmp_path):
    folder, canary = write(tmp_path / "m", tiny_tensors()), tmp_path / "canary"
    (folder / name).write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(Dsv2Error) as e:
        Checkpoint.open(folder)
    assert e.value.exit_code == 3
    assert not canary.exists()


def test_an_index_of_pickled_weights(tmp_path):
    folder, canary = write(tmp_path / "m", tiny_tensors(), shards=2), tmp_path / "canary"
    torch.save({"weight": Bomb(canary)}, folder / "pytorch_model.bin")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tiny_tensors(), "pytorch_model.bin")}))
    with pytest.raises(ModelError) as e:
        Checkpoint.open(folder)
    assert any("not a safetensors file" in p for p in e.value.problems)
    assert not canary.exists()


def test_adapters_are_not_taken_for_the_model(tmp_path):
    folder = write(tmp_path / "m", tiny_tensors())
    (folder / "model.safetensors").unlink()
    save_file({"lora_A": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"but no model\.safetensors\.index\.json"):
        Checkpoint.open(folder)
