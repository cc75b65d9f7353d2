"""Golden data: what the oracle says about a few sequences and how far eager mode is from it, kept in the engine.

golden/golden.safetensors, by name (N positions of all sequences, L layers, P probed positions):
tokens int64 [N], lengths, prompts, past int64 [sequences], oracle.rows [L, N, C] and oracle.logits [P, V] in
the oracle's dtype, e0.rows fp64 [3, L, N] and e0.logits fp64 [3, P] (see metrics.row_errors), clean uint8
[L + 1, N] (see routing). golden/golden.json: dtypes, spread of the eager runs, routing counts.
With it an engine is checked again later without the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import IntegrityError
from dsv2_compile.progress import Progress, silent
from dsv2_compile.verify import plan as plans
from dsv2_compile.verify.metrics import FIGURES, Array, Figures
from dsv2_compile.verify.plan import Plan
from dsv2_compile.verify.rule import UNIT_ROUNDOFF, eager_noise, farthest

if TYPE_CHECKING:
    from dsv2_compile.engine.writer import EngineWriter
    from dsv2_compile.weights import TensorSource

DATA = "golden/golden.safetensors"
INFO = "golden/golden.json"
VERSION = 1
_REMEDY = "Rebuild the engine with this version of dsv2-compile."


@dataclass(frozen=True)
class Golden:
    """``e0_rows``, ``e0_logits``: the row errors of eager mode, ``spread`` how far its runs lie apart (see rule).
    ``clean`` bool [L + 1, N]: rows no router flip can reach; ``routing`` counts choices, unstable, flips."""

    plan: Plan
    dtype: str
    oracle_dtype: str
    oracle_rows: Array
    oracle_logits: Array
    e0_rows: Array
    e0_logits: Array
    spread: Figures
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
                "e0.rows": np.ascontiguousarray(self.e0_rows),
                "e0.logits": np.ascontiguousarray(self.e0_logits),
                "clean": self.clean.astype(np.uint8),
            }
        )
        info = {
            "version": VERSION,
            "dtype": self.dtype,
            "oracle_dtype": self.oracle_dtype,
            "spread": asdict(self.spread),
            "routing": self.routing,
        }
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
    steps: int = plans.STEPS,
) -> Golden:
    """Run oracle and eager reference for an engine of ``dtype`` and these limits; ``source`` is the checkpoint."""
    return compute(config, source, dtype, plans.make(config, max_batch, max_tokens, seed, steps), progress)


def compute(config: ModelConfig, source: TensorSource, dtype: str, plan: Plan, progress: Progress = silent) -> Golden:
    """The oracle in fp64 for an fp32 engine, else in fp32; eager mode in ``dtype``."""
    import torch

    from dsv2_compile.verify import oracle
    from dsv2_compile.verify.routing import analyse

    wide = "float64" if dtype == "float32" else "float32"
    exact = oracle.run(config, source, plan, getattr(torch, wide), progress)
    noise = oracle.noise(config, source, plan, getattr(torch, dtype), exact, progress)
    routing = analyse(config, dtype, plan.lengths, exact.router, noise.router, noise.turned)
    counts = {"choices": routing.choices, "unstable": routing.unstable, "flips": routing.flips}
    parts = [(noise.rows[:, :, i], routing.clean[i]) for i in range(config.num_hidden_layers)]
    parts.append((noise.logits, routing.clean[-1][list(plan.probes)]))
    *e0_rows, e0_logits = (eager_noise(*part) for part in parts)
    spread = np.max([farthest(*part) for part in parts], axis=0)
    return Golden(
        plan=plan,
        dtype=dtype,
        oracle_dtype=wide,
        oracle_rows=exact.rows,
        oracle_logits=exact.logits,
        e0_rows=np.stack(e0_rows, 1),
        e0_logits=e0_logits,
        spread=Figures(*spread.tolist()),
        clean=routing.clean,
        routing=counts,
    )


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
            t["e0.rows"],
            t["e0.logits"],
            Figures(**{name: float(info["spread"][name]) for name in FIGURES}),
            t["clean"].astype(bool),
            {k: int(info["routing"][k]) for k in ("choices", "unstable", "flips")},
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
        raise IntegrityError(f"The golden data of {root} cannot be read: {e}.", _REMEDY) from e
    found = _misfits(golden, config)
    if found:
        raise IntegrityError(f"The golden data of {root} do not fit its model.", _REMEDY, found)
    return golden


def _misfits(g: Golden, config: ModelConfig) -> list[str]:
    p, layers, count = g.plan, config.num_hidden_layers, sum(g.plan.lengths)
    if not p.near or not len(p.tokens) == len(p.prompts) == len(p.past):
        return ["there is no sequence from position 0, or not a prompt and a past for each"]
    found = []
    if not all(1 <= n <= len(ids) and past >= 0 for ids, n, past in zip(p.tokens, p.prompts, p.past, strict=True)):
        found.append("a prompt is longer than its sequence, or empty")
    if not all(0 <= t < config.vocab_size for s in p.tokens for t in s):
        found.append("a token is outside the vocabulary")
    if g.dtype not in UNIT_ROUNDOFF or g.oracle_dtype not in ("float32", "float64"):
        found.append(f"dtypes {g.dtype} and {g.oracle_dtype} are not known")
    shapes = {
        "oracle.rows": (g.oracle_rows, (layers, count, config.cache_dim)),
        "oracle.logits": (g.oracle_logits, (len(p.probes), config.vocab_size)),
        "e0.rows": (g.e0_rows, (3, layers, count)),
        "e0.logits": (g.e0_logits, (3, len(p.probes))),
        "clean": (g.clean, (layers + 1, count)),
    }
    return found + [f"{k} is {list(x.shape)}, not {list(want)}" for k, (x, want) in shapes.items() if x.shape != want]
