"""What the GPU check must find: kernels and an engine that are wrong. And one that is right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from dsv2_compile.backends.cuda.compile import Compiled
from dsv2_compile.backends.cuda.disassembly import Usage
from dsv2_compile.backends.cuda.static_checks import Report
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.synth import SynthRequest, synth
from dsv2_compile.engine import integrity
from dsv2_compile.engine.manifest import FILE_NAME
from dsv2_compile.kernels.gpu.aot import Cubin
from dsv2_compile.kernels.gpu.cases.norm import CASES as NORMS
from dsv2_compile.kernels.gpu.check import Case
from dsv2_compile.pipeline import build, cuda_plan
from dsv2_compile.request import BuildRequest
from dsv2_compile.verify import make_golden

_GOOD = min(NORMS["rms_norm"], key=lambda case: case.sizes["rows"] * int(case.dims["N"]))


def _planted(**changes: Any) -> Case:
    return replace(_GOOD, kernel=replace(_GOOD.kernel, **changes))


def _spoiled(dims: Any, config: Any) -> dict[str, Any]:
    return {**_GOOD.kernel.constants(dims, config), "EPS": 3.0}


def _end(generator: Any) -> Any:
    os._exit(7)


def _raise(generator: Any) -> Any:
    raise ValueError("no such input")


CASES = {
    "right": [_GOOD],
    "wrong": [_planted(constants=_spoiled)],
    "outside": [_planted(grid=lambda dims, config, sizes: (sizes["rows"] + 1,))],
    "ends": [replace(_GOOD, inputs=_end)],
    "raises": [replace(_GOOD, inputs=_raise)],
    "right again": [_GOOD],
}


# engines


def _uncompiled(requests: Any, gpu: Any, **options: Any) -> Iterator[Compiled]:
    usage = Usage("sm_90", 7, 32, 0, 0, 0, 0, (), 16, 100)
    for i, r in enumerate(requests):
        cubin = Cubin(str(i).encode(), "", r.kernel, 0, 4, 0, 1, 0, 0)
        yield Compiled(r, cubin, usage, Report((), 0, "none", 1))


SIZES = {
    "num_hidden_layers": 1, "first_k_dense_replace": 0, "vocab_size": 260, "hidden_size": 32, "intermediate_size": 32,
    "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "num_attention_heads": 2, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip


def engines(folder: Path) -> tuple[Path, Path, Path]:
    """A tiny engine whose cubins are none, the same with a weight changed, and without weights."""
    synth(SynthRequest(folder / "checkpoint", "tiny-lite", SIZES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_plan, "compile_all", lambda *args, **options: list(_uncompiled(*args, **options)))
        limits = {"max_batch_size": 2, "max_seq_len": 12}
        request = BuildRequest(
            str(folder / "checkpoint"), folder / "right", backend="cuda", gpu="h200", no_verify=True, **limits
        )
        root = build(request).engine
    add_golden(root, folder / "checkpoint", steps=1)
    return root, _changed(root), _emptied(root)


def add_golden(root: Path, checkpoint: Path, steps: int) -> None:
    """Golden data for an engine that was built without the numeric check."""
    m = integrity.read_manifest(root)
    source = Checkpoint.open(checkpoint)
    golden = make_golden(m.model, source, m.dtype, m.max_batch_size, m.max_seq_len, steps=steps)
    golden.write(cast(Any, _Adder(root)))


class _Adder:
    """Adds files to an engine as its writer does."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add_bytes(self, name: str, data: bytes) -> None:
        manifest, path = integrity.read_manifest(self._root), self._root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        files = {**manifest.files, name: integrity.file_entry(path)}
        (self._root / FILE_NAME).write_bytes(replace(manifest, files=files).to_bytes())


def _changed(root: Path) -> Path:
    """One matrix has its numbers in reverse, and the manifest says that they are right."""
    out = root.with_name("wrong")
    shutil.copytree(root, out)
    manifest = integrity.read_manifest(out)
    place = next(w for name, w in manifest.weights.items() if name.endswith("o_proj.weight"))
    file, span = place.file, slice(place.offset, place.offset + place.nbytes)
    data = np.frombuffer((out / file).read_bytes(), np.uint8).copy()
    data[span] = data[span].view(np.uint16)[::-1].copy().view(np.uint8)
    (out / file).write_bytes(data.tobytes())
    files = {**manifest.files, file: integrity.file_entry(out / file)}
    (out / FILE_NAME).write_bytes(replace(manifest, files=files).to_bytes())
    return out


def _emptied(root: Path) -> Path:
    out = root.with_name("plan")
    shutil.copytree(root, out)
    manifest = integrity.read_manifest(out)
    gone = {w.file for w in manifest.weights.values()} | {f for f in manifest.files if f.startswith("golden/")}
    for folder in {f.split("/")[0] for f in gone}:
        shutil.rmtree(out / folder)
    kept = {f: e for f, e in manifest.files.items() if f not in gone}
    (out / FILE_NAME).write_bytes(replace(manifest, files=kept, weights={}).to_bytes())
    return out
