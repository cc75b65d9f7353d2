"""Golden data: what the oracle and the eager model say about a few sequences, kept inside the engine.

golden/golden.safetensors, by name (N positions of all sequences, L layers, P probed positions):
tokens int64 [N], lengths, prompts, past int64 [sequences], oracle.rows [L, N, C] and oracle.logits [P, V] in
the oracle's dtype, eager.rows and eager.logits in fp32, clean uint8 [L + 1, N] (see routing).
golden/golden.json: dtypes and routing counts. With it an engine is checked again later without the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import IntegrityError
from dsv2_compile.verify import plan as plans
from dsv2_compile.verify.metrics import Array
from dsv2_compile.verify.plan import Plan
from dsv2_compile.verify.progress import Progress, silent

if TYPE_CHECKING:
    from dsv2_compile.engine.writer import EngineWriter
    from dsv2_compile.weights import TensorSource

DATA = "golden/golden.safetensors"
INFO = "golden/golden.json"
VERSION = 1
_REMEDY = "Rebuild the engine with this version of dsv2-compile."


@dataclass(frozen=True)
class Golden:
    """``clean`` bool [L + 1, N]: rows no router flip can reach; ``routing`` counts choices, unstable, flips."""

    plan: Plan
    dtype: str
    oracle_dtype: str
    oracle_rows: Array
    oracle_logits: Array
    eager_rows: Array
    eager_logits: Array
    clean: NDArray[np.bool_]
    routing: dict[str, int]

    def write(self, writer: EngineWriter) -> None:
        from safetensors.numpy import save

        p = self.plan
        data = save(
            {
                "tokens": np.array([t for s in p.tokens for t in s], np.int64),
                "lengths": np.array(p.lengths, np.int64),
                "prompts": np.array(p.prompts, np.int64),
                "past": np.array(p.past, np.int64),
                "oracle.rows": np.ascontiguousarray(self.oracle_rows),
                "oracle.logits": np.ascontiguousarray(self.oracle_logits),
                "eager.rows": np.ascontiguousarray(self.eager_rows),
                "eager.logits": np.ascontiguousarray(self.eager_logits),
                "clean": self.clean.astype(np.uint8),
            }
        )
        info = {"version": VERSION, "dtype": self.dtype, "oracle_dtype": self.oracle_dtype, "routing": self.routing}
        writer.add_bytes(DATA, data)
        writer.add_bytes(INFO, (json.dumps(info, indent=1, sort_keys=True) + "\n").encode())


def make(
    config: ModelConfig,
    source: TensorSource,
    dtype: str,
    max_batch: int,
    max_tokens: int,
    seed: int = 0,
    progress: Progress = silent,
) -> Golden:
    """Run oracle and eager reference for an engine of ``dtype`` and these limits; ``source`` is the checkpoint."""
    return compute(config, source, dtype, plans.make(config, max_batch, max_tokens, seed), progress)


def compute(config: ModelConfig, source: TensorSource, dtype: str, plan: Plan, progress: Progress = silent) -> Golden:
    """The oracle in fp64 for an fp32 engine, else in fp32; eager mode in ``dtype``."""
    import torch

    from dsv2_compile.verify import oracle
    from dsv2_compile.verify.routing import analyse

    wide = "float64" if dtype == "float32" else "float32"
    exact, eager = (oracle.run(config, source, plan, getattr(torch, d), progress) for d in (wide, dtype))
    routing = analyse(config, dtype, plan.lengths, exact.router, eager.router)
    counts = {"choices": routing.choices, "unstable": routing.unstable, "flips": routing.flips}
    return Golden(plan, dtype, wide, exact.rows, exact.logits, eager.rows, eager.logits, routing.clean, counts)


def read(root: Path, config: ModelConfig) -> Golden:
    """The golden data of an engine whose files are already hash-checked; IntegrityError if they do not fit it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        info: dict[str, Any] = json.loads((root / INFO).read_text())
        if info.get("version") != VERSION:
            raise IntegrityError(f"{INFO} has version {info.get('version')}, expected {VERSION}.", _REMEDY)
        t = load_file(root / DATA)
        ids, lengths = t["tokens"].tolist(), t["lengths"].tolist()
        at = np.cumsum([0, *lengths]).tolist()
        plan = Plan(
            tuple(tuple(ids[a:b]) for a, b in pairwise(at)),
            tuple(t["prompts"].tolist()),
            tuple(t["past"].tolist()),
        )
        golden = Golden(
            plan,
            info["dtype"],
            info["oracle_dtype"],
            t["oracle.rows"],
            t["oracle.logits"],
            t["eager.rows"],
            t["eager.logits"],
            t["clean"].astype(bool),
            info["routing"],
        )
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise IntegrityError(f"The golden data of {root} cannot be read: {e}.", _REMEDY) from e
    layers, rows = config.num_hidden_layers, (config.num_hidden_layers, sum(lengths), config.cache_dim)
    logits = (len(plan.probes), config.vocab_size)
    shapes = (golden.oracle_rows.shape, golden.eager_rows.shape, golden.oracle_logits.shape, golden.eager_logits.shape)
    if shapes != (rows, rows, logits, logits) or golden.clean.shape != (layers + 1, sum(lengths)):
        raise IntegrityError(f"The golden data of {root} have other shapes than its model.", _REMEDY)
    return golden
