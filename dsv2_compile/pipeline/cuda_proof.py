"""The proof of a GPU engine without a GPU: its plan, executed on the host, against the eager model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsv2_compile.backends.cuda.host import NUMPY, Arrays
from dsv2_compile.backends.cuda.host_engine import HostEngine
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.engine.writer import EngineWriter
from dsv2_compile.plan.plan import FILE
from dsv2_compile.plan.text import parse
from dsv2_compile.progress import Progress
from dsv2_compile.request import BuildRequest
from dsv2_compile.verify import Report, make_golden
from dsv2_compile.verify.check import check
from dsv2_compile.verify.golden import Golden

_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32"}


def verify(
    writer: EngineWriter, manifest: Manifest, checkpoint: Checkpoint, request: BuildRequest, progress: Progress
) -> Report:
    """The staged engine's own plan, every launch by the interpreter on host memory."""
    golden = make_golden(
        manifest.model, checkpoint, manifest.dtype, manifest.max_batch_size, manifest.max_seq_len, progress=progress
    )
    golden.write(writer)
    return check_on_host(writer.stage, writer.seal(manifest), golden, progress)


def check_on_host(root: Path, manifest: Manifest, golden: Golden, progress: Progress) -> Report:
    plan = parse((root / FILE).read_bytes())
    positions = (
        sum(golden.plan.lengths[b] for b in golden.plan.near) + max(golden.plan.past) + 64 * len(golden.plan.tokens)
    )
    engine = HostEngine(plan, manifest.model, weights(root, manifest), positions, manifest.max_seq_len)
    return check(engine, manifest.model, golden, root.name, progress)


def weights(root: Path, manifest: Manifest) -> Arrays:
    """Every weight, mapped; bf16 as its bits."""
    return {
        name: np.memmap(root / w.file, NUMPY[_SHORT[w.dtype]], "r", w.offset, w.shape)
        for name, w in manifest.weights.items()
    }
