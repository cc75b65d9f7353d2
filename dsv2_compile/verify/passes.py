"""Per-pass check in fp64 on the shrunken twin: the graph before a pass against the graph after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import NumericError, PassError
from dsv2_compile.evaluate import evaluate
from dsv2_compile.export import export
from dsv2_compile.model.layout import checkpoint_tensors
from dsv2_compile.passes import pipeline
from dsv2_compile.passes.core import Pass, PassRecord
from dsv2_compile.program import Program, TensorSpec

DTYPE = torch.float64
BATCH, TOKENS, CONTEXT = 3, 4, 6


class RandomWeights:
    """A `TensorSource` of random fp64 tensors with scales that keep activations near 1."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.tensors = {}
        for name, shape in checkpoint_tensors(config).items():
            t = torch.randn(shape, generator=g, dtype=DTYPE)
            self.tensors[name] = 1 + 0.2 * t if len(shape) == 1 else t * 1.3 / shape[-1] ** 0.5

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@dataclass
class Twin:
    """A toy-sized program of the same structure, with its weights and one ragged batch of inputs."""

    program: Program
    source: RandomWeights
    inputs: dict[str, torch.Tensor]

    def outputs(self) -> dict[str, torch.Tensor]:
        """ValueError for a node whose value is not what its ``spec`` or ``sym`` says: backends go by these."""
        weights = {n: self.program.weights[n].evaluate(self.source, DTYPE) for n in self.program.weights.recipes}
        sizes = {"batch": BATCH, "tokens": self.inputs["tokens"].shape[1], "context": CONTEXT}

        def watch(node: fx.Node, value: Any) -> None:
            said, found = _said(node, sizes), _found(value)
            if said != found:
                raise ValueError(f"{node.name} is said to be {said}, but is {found}")

        return evaluate(self.program, self.inputs, weights, watch)


def _said(node: fx.Node, sizes: dict[str, int]) -> Any:
    """Shape and dtype of a node at ``sizes``, of several results a tuple of them; of a size its value."""
    if "spec" not in node.meta:
        return TensorSpec((node.meta["sym"],), torch.int64).concrete(**sizes)[0]
    specs = node.meta["spec"]
    one = [(s.concrete(**sizes), s.dtype) for s in (specs if isinstance(specs, tuple) else (specs,))]
    return tuple(one) if isinstance(specs, tuple) else one[0]


def _found(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    return tuple(map(_found, value)) if isinstance(value, (tuple, list)) else value


def twin(config: ModelConfig, phase: str, seed: int = 0) -> Twin:
    small = config.twin()
    program = export(small, phase, DTYPE)
    g = torch.Generator().manual_seed(seed + 1)
    tokens = TOKENS if phase == "prefill" else 1
    inputs = {
        "tokens": torch.randint(small.vocab_size, (BATCH, tokens), generator=g),
        "past": torch.tensor([CONTEXT, 2, 0]),
    }
    if phase == "prefill":
        inputs["lengths"] = torch.tensor([TOKENS, 1, 3])
    for i in range(small.num_hidden_layers):
        inputs[f"cache.{i}"] = torch.randn(BATCH, CONTEXT, small.cache_dim, generator=g, dtype=DTYPE)
    return Twin(program, RandomWeights(small, seed), inputs)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative L2 difference over the outputs; inf for a NaN, an infinity or another shape."""
    worst = 0.0
    for name, x in a.items():
        y = b[name]
        if x.shape != y.shape or not torch.isfinite(y).all():
            return float("inf")
        worst = max(worst, float((x - y).norm() / x.norm().clamp_min(1e-300)))
    return worst


def check_passes(config: ModelConfig, phase: str, passes: Sequence[Pass], bisect: bool = False) -> list[PassRecord]:
    """Run ``passes`` on the twin and hold each to its claim.

    A broken claim raises NumericError naming the pass; with ``bisect`` the remaining passes still run
    and the error lists the difference that each one made.
    """
    t = twin(config, phase)
    before = t.outputs()
    broken: list[PassRecord] = []

    def after(p: Pass, record: PassRecord) -> PassRecord:
        nonlocal before
        try:
            now = t.outputs()
        except Exception as e:
            raise PassError(
                f"after pass {p.name} the {phase} graph does not run: {next(iter(str(e).splitlines()), repr(e))}",
                f"this is a bug of the pass; see {p.name} in the passes",
            ) from e
        record = replace(record, error=difference(before, now))
        before = now
        assert record.error is not None
        if record.error > p.tolerance:
            broken.append(record)
            if not bisect:
                raise _broken(broken, [record])
        return record

    records = pipeline.run(t.program, passes, after)
    if broken:
        raise _broken(broken, records)
    return records


def _broken(broken: Sequence[PassRecord], records: Sequence[PassRecord]) -> NumericError:
    first = broken[0]
    return NumericError(
        f"pass {first.name} breaks its claim in {first.phase}: {first.claim}, but fp64 results differ by "
        f"{first.error:.2e}",
        f"see {first.name} in the passes; --dump-ir DIR writes the graphs around it",
        [f"{r.name}: {r.error:.2e} (claims {r.claim})" for r in records],
    )
