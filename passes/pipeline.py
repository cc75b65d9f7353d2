"""The pipeline: one list, in order, and what is checked after every pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch

from dsv2_compile.errors import PassError, UsageError
from dsv2_compile.kernels.dialect import OPS
from dsv2_compile.origin import written
from dsv2_compile.passes.absorb import Absorb
from dsv2_compile.passes.attention import Attention
from dsv2_compile.passes.cache_rows import CacheRows
from dsv2_compile.passes.canonicalise import Canonicalise
from dsv2_compile.passes.core import Pass, PassRecord, specs_of
from dsv2_compile.passes.dead_code import DeadCode
from dsv2_compile.passes.experts import Experts
from dsv2_compile.passes.gate import Gate
from dsv2_compile.passes.merge_projections import MergeProjections
from dsv2_compile.passes.residual_norm import ResidualNorm
from dsv2_compile.passes.rms_norm import RmsNorm
from dsv2_compile.passes.rope import Rope
from dsv2_compile.passes.swiglu import SwiGlu
from dsv2_compile.program import Program
from dsv2_compile.targets import Target


def pipeline(target: Target | None = None, forms: dict[str, str] | None = None) -> list[Pass]:
    """The passes in order. ``forms`` overrides the MLA form of a phase."""
    return [
        Canonicalise(),
        RmsNorm(),  # before cache_rows and residual_norm, which build on it
        Rope(),
        CacheRows(),
        Gate(),  # before merge_projections, so that the router is no longer a linear
        Experts(),
        Attention(),
        Absorb(target, forms),  # before merge_projections, which takes whatever q projection is left
        MergeProjections(),
        SwiGlu(),
        ResidualNorm(),
        DeadCode(),
    ]


_ATEN = torch.ops.aten
LOWERABLE = {
    *(getattr(_ATEN, n).default for n in ("embedding", "linear", "view", "split_with_sizes", "cat", "unsqueeze")),
    *(getattr(_ATEN, n).default for n in ("arange", "clamp", "expand")),
    *(getattr(_ATEN, n).Tensor for n in ("add", "sub", "mul", "index", "slice")),
    _ATEN.select.int,
    _ATEN.sym_size.int,
    _ATEN.flatten.using_ints,
    operator.getitem,
    operator.add,
}
"""What may stand beside dsv2:: operators after the last pass; every backend lowers all of it."""


def run(
    program: Program, passes: Sequence[Pass], after: Callable[[Pass, PassRecord], PassRecord] | None = None
) -> list[PassRecord]:
    """Run ``passes`` on ``program`` in place; ``after`` may check and amend each record."""
    records: list[PassRecord] = []
    done: set[str] = set()
    for p in passes:
        missing = [r for r in p.requires if r not in done]
        if missing:
            raise PassError(f"{p.name} needs {', '.join(missing)} before it", "put the passes in that order")
        before = len(program.graph.nodes)
        try:
            outcome = p.apply(program)
            check_graph(program, p.name)
        except UsageError:
            raise
        except Exception as e:
            raise PassError(
                f"pass {p.name} failed in {program.phase}: {e.cause if isinstance(e, PassError) else repr(e)}",
                e.remedy if isinstance(e, PassError) else "this is a bug of the pass; report it with the config",
            ) from e
        expected = p.expected(program.config, program.phase)
        if expected is not None and outcome.matches != expected and not outcome.skipped:
            miss = "no candidate was found" if outcome.miss is None else f"{outcome.miss}{written(outcome.miss.root)}"
            raise PassError(
                f"pass {p.name} matched {outcome.matches} of {expected} in {program.phase}; {miss}",
                "the graph was not exported from this reference, or an earlier pass changed it",
            )
        record = PassRecord(
            p.name,
            program.phase,
            p.claim,
            outcome.matches,
            expected,
            before,
            len(program.graph.nodes),
            outcome.skipped,
            outcome.reason,
        )
        records.append(after(p, record) if after else record)
        done.add(p.name)
    return records


def check_graph(program: Program, after: str) -> None:
    """FX lint, a shape on every node, and the dialect's own shape rules."""
    program.graph.lint()
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        if "spec" not in node.meta and "sym" not in node.meta:
            raise PassError(f"after {after}, {node.name} has no shape", "this is a bug of the pass")
        op = OPS.get(node.target)
        ruled = node.meta.get("spec") if op is None else op.specs(*specs_of(node.args))
        if op is not None and ruled != node.meta["spec"]:
            raise PassError(
                f"after {after}, {node.name} says {node.meta['spec']} but {op.name} gives {ruled}",
                "this is a bug of the pass",
            )
        if node.op == "get_attr" and program.weights[node.target].shape != node.meta["spec"].shape:
            raise PassError(f"after {after}, weight {node.target} has another shape than its recipe", "this is a bug")


def check_lowerable(program: Program) -> None:
    """After the last pass only dialect operators and a short list of ATen ones may be left."""
    left: dict[str, torch.fx.Node] = {}
    for node in program.nodes():
        if node.op == "call_function" and node.target not in OPS and node.target not in LOWERABLE:
            left.setdefault(str(node.target), node)
    if left:
        raise PassError(
            f"no pass fuses {', '.join(sorted(left))} of the {program.phase} graph, and no backend lowers it",
            "use operators that the passes match, or add a pass, or a rule in every backend and an entry in LOWERABLE",
            [f"{name}: {node.name}{written(node)}" for name, node in sorted(left.items())],
        )
