"""Lowers a fused program to ONNX: one table from operator to rule, one walk over the graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import onnx
import sympy
from onnx import helper
from torch import fx

from dsv2_compile.backends.onnxruntime import rules_aten, rules_attention, rules_dense, rules_moe
from dsv2_compile.backends.onnxruntime.builder import IR_VERSION, OPSET, ORT, Builder, Value, value_info
from dsv2_compile.backends.onnxruntime.rules_aten import Rule
from dsv2_compile.errors import ModelError
from dsv2_compile.origin import written
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.weights import Recipe

RULES: dict[Any, Rule] = rules_aten.RULES | rules_dense.RULES | rules_attention.RULES | rules_moe.RULES
"""Rules over ai.onnx."""
ORT_RULES: dict[Any, Rule] = rules_dense.ORT_RULES | rules_moe.ORT_RULES
"""Rules that replace them on ONNX Runtime, over com.microsoft."""
SESSION_OPTIONS = {
    # Linears read the mapped weights file in place: no second copy in memory, no packing at load,
    # and prefill and decode share its pages. artifacts/bench/ort_micro.json has the figures.
    "session.disable_prepacking": "1",
    # Two sessions live in one process: the threads of the idle one must not take the cores.
    "session.force_spinning_stop": "1",
}


@dataclass(frozen=True)
class Lowered:
    """A model whose weights are declared but not yet placed, the recipes of these, and how to open it."""

    model: onnx.ModelProto
    weights: dict[str, Recipe]
    session_options: dict[str, str] = field(default_factory=lambda: dict(SESSION_OPTIONS))


def lower(program: Program, portable: bool = False) -> Lowered:
    """The ONNX model of ``program``; ``portable`` keeps to ai.onnx operators that any runtime has.

    Inputs are those of the program. Outputs ``rows.N`` become one ``rows`` [layers, B, S, C], the
    others keep their names. Raises ModelError for an operator, an argument or a dtype without a rule.
    """
    b = Builder(portable, symbols=_symbols(program.inputs))
    rules = RULES if portable else RULES | ORT_RULES
    env: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = Value(node.target, node.meta["spec"])
        elif node.op == "get_attr":
            env[node] = b.weight(node.target, node.meta["spec"], program.weights[node.target])
        elif node.op == "call_function":
            b.scope = node.name
            env[node] = _call(b, rules, node, env)
        else:
            b.scope = ""
            values = dict(zip(program.outputs, (env[n] for n in node.args[0]), strict=True))
    return _finish(b, program, values)


def _symbols(inputs: Mapping[str, TensorSpec]) -> dict[sympy.Symbol, tuple[str, int]]:
    found: dict[sympy.Symbol, tuple[str, int]] = {}
    for name, spec in inputs.items():
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, sympy.Symbol):
                found.setdefault(dim, (name, axis))
    return found


def _call(b: Builder, rules: Mapping[Any, Rule], node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    if node.target not in rules:
        raise ModelError(
            f"the ONNX Runtime backend has no rule for {node.target}, at node {node.name}{written(node)}",
            f"run the passes first; supported: {', '.join(sorted(map(str, rules)))}",
        )
    rule, out = rules[node.target], cast(Any, node.meta.get("spec"))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
    try:
        inspect.signature(rule).bind(b, out, *args, **kwargs)
    except TypeError as e:
        raise ModelError(
            f"the ONNX Runtime backend cannot lower {node.target} with these arguments, at node {node.name}: {e}",
            f"write it in the form of the rule for {node.target}",
        ) from e
    result = rule(b, out, *args, **kwargs)
    if isinstance(result, str):
        return Value(result, out)
    if isinstance(result, tuple):
        return tuple(Value(name, spec) for name, spec in zip(result, out, strict=True))
    return result


def _finish(b: Builder, program: Program, values: Mapping[str, Value]) -> Lowered:
    rows = [name for name in values if name.startswith("rows.")]
    outputs = {name: program.outputs[name] for name in values if name not in rows}
    for name in outputs:
        b.add("Identity", [values[name].name], [name])
    if rows:
        layer = program.outputs[rows[0]]
        outputs["rows"] = TensorSpec((len(rows), *layer.shape), layer.dtype)
        b.add("Concat", [b.unsqueeze(values[name].name, 0) for name in rows], ["rows"], axis=0)
    read = set(_read(b.nodes))
    graph = helper.make_graph(
        b.nodes,
        program.phase,
        [value_info(name, spec) for name, spec in program.inputs.items()],
        [value_info(name, spec) for name, spec in outputs.items()],
        [tensor for name, tensor in b.initializers.items() if name in read],
    )
    opsets = [helper.make_opsetid("", OPSET)] + ([] if b.portable else [helper.make_opsetid(ORT, 1)])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="dsv2-compile")
    return Lowered(model, {name: recipe for name, recipe in b.weights.items() if name in read})


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from _read(attribute.g.node)
