"""Lowers a fused program to launches: one table from operator to rule, one walk over the graph.

[batch, tokens, ...] of the graph become packed rows: the new tokens of all sequences, one after the other,
without padding. What the graph says about positions and lengths is the caller's to provide, as inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from dsv2_compile.backends.cuda import rules_attention, rules_dense, rules_moe
from dsv2_compile.backends.cuda.draft import Choose, Draft
from dsv2_compile.backends.cuda.values import Lowering, Rule, Skipped
from dsv2_compile.backends.cuda.workload import workload
from dsv2_compile.errors import ModelError
from dsv2_compile.kernels.gpu.kernel import KERNELS, Call, Config
from dsv2_compile.origin import written
from dsv2_compile.program import Program
from dsv2_compile.targets import Target

RULES: dict[Any, Rule] = rules_dense.RULES | rules_attention.RULES | rules_moe.RULES


def default(call: Call, target: Target) -> Config:
    return KERNELS[call.kernel].default(dict(call.dims), target)


def lower(
    program: Program,
    phase: str,
    target: Target,
    dtype: str,
    limits: Mapping[str, int],
    pages: int,
    choose: Choose = default,
) -> Draft:
    """The launches of ``program`` as ``phase`` (prefill, extend or decode) for at most ``limits``.

    ``pages``: most cache pages of a sequence. ``dtype``: bf16, fp16 or fp32, of weights, activations and cache.
    Raises ModelError for an operator or an argument without a rule.
    """
    low = Lowering(program, phase, Draft(target, dtype, dict(limits), workload(phase, limits), choose), pages)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            low.values[node] = low.placeholder(node)
        elif node.op == "get_attr":
            low.values[node] = low.weight(str(node.target))
        elif node.op == "call_function":
            low.values[node] = _call(low, node)
        else:
            _check_outputs(low, dict(zip(program.outputs, node.args[0], strict=True)))
    rules_dense.next_tokens(low)
    low.draft.finish()
    return low.draft


def _call(low: Lowering, node: fx.Node) -> Any:
    if node.target is operator.getitem:
        return low.values[node.args[0]][node.args[1]]  # type: ignore[index]
    rule = RULES.get(node.target)
    if rule is None:
        raise ModelError(
            f"the CUDA backend has no rule for {node.target}, at node {node.name}{written(node)}",
            f"run the passes first; supported: {', '.join(sorted(map(str, RULES)))}",
        )
    return rule(low, node)


def _check_outputs(low: Lowering, outputs: Mapping[str, fx.Node]) -> None:
    """Logits are in their output buffer, every layer's new rows in the cache."""
    for name, node in outputs.items():
        value = low.values[node]
        right = isinstance(value, Skipped) if name.startswith("rows.") else getattr(value, "buffer", "") == name
        if not right:
            raise ModelError(
                f"the CUDA backend cannot make {name} of {node.target}{written(node)}",
                "logits are a linear layer over the last row of each sequence, rows the normed and rotated latent",
            )
