"""What the user of ``build`` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class BuildRequest:
    """``model``: a directory or a hub id. ``mla_form``: form by phase, overriding the cost model.

    ``backend``: onnxruntime, or cuda with the name of the ``gpu`` it is for and the ``dtype`` it computes in.

    ``no_weights``: plan and kernels only. ``max_seq_len`` None: the model's own limit. ``portable``: ONNX with
    ai.onnx operators only.
    ``strict``: NaN or infinity in the weights is an error. ``bisect`` and ``dump_ir`` are for finding
    the pass that breaks a program. ``tuning``: auto, none, or a file of tuning records.
    """

    model: str
    output: Path
    backend: str = "onnxruntime"
    gpu: str | None = None
    dtype: str | None = None
    revision: str | None = None
    strict: bool = False
    max_batch_size: int = 8
    max_seq_len: int | None = None
    mla_form: Mapping[str, str] = field(default_factory=dict)
    portable: bool = False
    force: bool = False
    no_verify: bool = False
    no_weights: bool = False
    bisect: bool = False
    dump_ir: Path | None = None
    tuning: str = "auto"
