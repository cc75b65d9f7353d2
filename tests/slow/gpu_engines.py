"""Engines for `dsv2_compile.gpu_check`, to be built where there is no GPU and checked where there is one.

    python -m tests.slow.gpu_engines DIR [NAME ...]

Three with weights and golden data, small enough to be carried, and the plan of V2-Lite, which the check times with
random weights. Not verified here: that is what the check is for.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from dsv2_compile.checkpoint.presets import PRESETS, published_config
from dsv2_compile.checkpoint.synth import SynthRequest, synth
from dsv2_compile.pipeline import build
from dsv2_compile.request import BuildRequest
from tests.gpu_check_plants import add_golden

GPU = "h200"
STEPS = 16
WIDE = {
    "num_hidden_layers": 2, "hidden_size": 384, "num_attention_heads": 16, "q_lora_rank": 256, "vocab_size": 1024,
    "intermediate_size": 640, "moe_intermediate_size": 128, "n_routed_experts": 16,
}  # fmt: skip
"""The heads, latent and rotary dims of the published models, and 16 heads, as V2-Lite has."""
ENGINES: dict[str, tuple[str, dict[str, Any], str, int, int]] = {
    "tiny": ("tiny", {}, "bfloat16", 8, 4096),
    "tiny-lite-fp16": ("tiny-lite", {}, "float16", 4, 512),
    "wide": ("v2", WIDE, "bfloat16", 2, 4300),
}
"""Preset, overrides, dtype, most sequences, most positions of each."""
PLAN = "lite-plan"


def engine(folder: Path, name: str) -> Path:
    preset, overrides, dtype, batch, positions = ENGINES[name]
    checkpoint = folder / f"{name}.checkpoint"
    synth(SynthRequest(checkpoint, preset, overrides, force=True))
    try:
        root = _built(checkpoint, folder / name, batch, positions, dtype=dtype)
        add_golden(root, checkpoint, STEPS)
    finally:
        shutil.rmtree(checkpoint)
    return root


def plan(folder: Path) -> Path:
    """Of V2-Lite: room for 128 sequences of 8,192 cached positions."""
    checkpoint = folder / f"{PLAN}.checkpoint"
    checkpoint.mkdir(exist_ok=True)
    try:
        (checkpoint / "config.json").write_text(json.dumps(published_config(PRESETS["lite"], "bfloat16")))
        return _built(checkpoint, folder / PLAN, 128, 8256, no_weights=True)
    finally:
        shutil.rmtree(checkpoint)


def _built(checkpoint: Path, out: Path, batch: int, positions: int, **changes: Any) -> Path:
    limits: dict[str, Any] = {"max_batch_size": batch, "max_seq_len": positions}
    request = BuildRequest(str(checkpoint), out, "cuda", GPU, no_verify=True, force=True, **limits, **changes)
    return build(request).engine


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or [*ENGINES, PLAN]:
        root = plan(folder) if name == PLAN else engine(folder, name)
        size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
        print(f"{root}: {size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
