"""Programs as text, one node a line, and back: for --dump-ir and for the golden tests of the passes.

    %tokens: int64[batch, tokens] = input("tokens")
    %w: float32[48] = weight("model.norm.weight")
    %n: size[batch] = aten.sym_size.int(%tokens, 0)
    %p: (float32[batch, 6], float32[batch, 2]) = aten.split_with_sizes.default(%x, [6, 2], -1)
    return logits: %a, rows.0: %b

Arguments are Python literals, node names with a %, and torch dtypes. A weight is followed by its recipe if
that is neither the checkpoint tensor of its name nor what `naive_weights` gives: for derived weights only.
`program_text(parse_program(text, ...)) == text` for every text that `program_text` writes.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import operator
import re
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx

from dsv2_compile import weights as recipes
from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import ModelError
from dsv2_compile.kernels import ops  # noqa: F401 - registers the dialect
from dsv2_compile.model.layout import naive_weights
from dsv2_compile.program import BATCH, CONTEXT, TOKENS, Dim, Program, TensorSpec
from dsv2_compile.weights import Recipe, RopeTable, Source, WeightTable

_SYMBOLS = {s.name: s for s in (BATCH, TOKENS, CONTEXT)}
_RECIPES = {c.__name__: c for c in vars(recipes).values() if isinstance(c, type) and issubclass(c, Recipe)}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_NODE = "_node_"
"""Stands for % while a line is read as Python."""


def program_text(program: Program) -> str:
    """The graph of ``program``, one node a line, ending in a newline."""
    naive = _naive(program.config, program.weights)
    lines = []
    for node in program.graph.nodes:
        if node.op == "output":
            outputs = zip(program.outputs, node.args[0], strict=True)
            lines.append("return " + ", ".join(f"{name}: {_value(n)}" for name, n in outputs))
        else:
            lines.append(f"%{node.name}: {_type(node)} = {_right(node, program.weights, naive)}")
    return "\n".join(lines) + "\n"


def _naive(config: ModelConfig, table: WeightTable) -> dict[str, Recipe]:
    """The naive recipes of ``config``, with as many rows of the rope tables as ``table`` has."""
    rows = [r.shape[0] for name, r in table.recipes.items() if name.startswith("rope.")]
    return naive_weights(config, rows[0] if rows else config.max_position_embeddings).recipes


def _type(node: fx.Node) -> str:
    if "spec" in node.meta:
        spec = node.meta["spec"]
        return f"({', '.join(map(str, spec))})" if isinstance(spec, tuple) else str(spec)
    return f"size[{node.meta['sym']}]"


def _right(node: fx.Node, table: WeightTable, naive: dict[str, Recipe]) -> str:
    if node.op == "placeholder":
        return f"input({json.dumps(node.target)})"
    if node.op == "get_attr":
        name = str(node.target)
        recipe = table[name]
        plain = recipe == Source(name, recipe.shape) or recipe == naive.get(name)
        return f"weight({json.dumps(name)})" if plain else f"weight({json.dumps(name)}, {_value(recipe)})"
    named = [f"{k}={_value(v)}" for k, v in node.kwargs.items()]
    return f"{_target(node.target)}({', '.join([*map(_value, node.args), *named])})"


def _target(target: Any) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload) else f"operator.{target.__name__}"


def _value(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Recipe):
        # RopeTable holds the config, which the reader of the text is given
        fields = [getattr(value, f.name) for f in dataclasses.fields(value)]
        return f"{type(value).__name__}({', '.join(_value(f) for f in fields if not isinstance(f, ModelConfig))})"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))}{',' if len(value) == 1 else ''})"
    if value is None or isinstance(value, (bool, int, float, torch.dtype)):
        return repr(value)
    raise ModelError(f"{value!r} has no text form", "add it to dsv2_compile/ir_text.py")


def parse_program(text: str, config: ModelConfig, phase: str) -> Program:
    """The program that ``text`` says. ModelError naming the line if it says none."""
    reader = _Reader(config)
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in lines:
        try:
            reader.line(line)
        except Exception as e:
            why = e.msg if isinstance(e, SyntaxError) else e
            raise ModelError(f"line {number}: {why}: {line}", "the form is described in dsv2_compile/ir_text.py") from e
    if reader.outputs is None:
        raise ModelError(f"line {len(text.splitlines())}: the program does not return", "end it with a return line")
    limit = config.max_position_embeddings
    ranges = {"batch": (1, 1 << 20), "tokens": (1, limit) if phase == "prefill" else (1, 1), "context": (0, limit)}
    return Program(phase, config, reader.graph, ranges, reader.inputs, reader.outputs, reader.weights)


class _Reader:
    """Builds the graph line by line."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] | None = None
        self.weights = WeightTable({})

    def line(self, line: str) -> None:
        if self.outputs is not None:
            raise ValueError("nothing may follow the return line")
        if line.startswith("return "):
            self.outputs = {}
            self.graph.output(tuple(self._returned(part) for part in line.removeprefix("return ").split(", ")))
            return
        form = re.fullmatch(r"%(\w+): (.+?) = (\w.*)", line)
        if not form:
            raise ValueError("a node is `%name: type = operator(arguments)`")
        name, kind, right = form.groups()
        node = self._node(name, _meta(kind), _python(right))
        if node.name != name:
            raise ValueError(f"{name} is taken or not a name a node can have")
        self.nodes[name] = node

    def _returned(self, part: str) -> fx.Node:
        assert self.outputs is not None
        name, _, value = part.partition(": %")
        if value not in self.nodes or name in self.outputs:
            raise ValueError(f"{part} names no node, or the output {name} twice")
        self.outputs[name] = self.nodes[value].meta["spec"]
        return self.nodes[value]

    def _node(self, name: str, meta: dict[str, Any], right: ast.expr) -> fx.Node:
        if not isinstance(right, ast.Call):
            raise TypeError("a call is missing")
        called = ast.unparse(right.func)
        args = [self._literal(a) for a in right.args]
        if called == "input":
            node = self.graph.create_node("placeholder", args[0], name=name)
            self.inputs[args[0]] = meta["spec"]
        elif called == "weight":
            node = self.graph.create_node("get_attr", args[0], name=name)
            self.weights.add(args[0], self._recipe(args, meta["spec"]))
        else:
            kwargs = {str(k.arg): self._literal(k.value) for k in right.keywords}
            node = self.graph.create_node("call_function", _operator(called), tuple(args), kwargs, name=name)
        node.meta.update(meta)
        return node

    def _recipe(self, args: list[Any], spec: TensorSpec) -> Recipe:
        if len(args) > 1:
            given: Recipe = args[1]
            return given
        rows = int(spec.shape[0]) if args[0].startswith("rope.") else self.config.max_position_embeddings
        naive = naive_weights(self.config, rows).recipes.get(args[0])
        return naive if naive is not None and naive.shape == spec.shape else Source(args[0], spec.shape)  # type: ignore[arg-type]

    def _literal(self, e: ast.expr) -> Any:
        """The value an argument stands for."""
        if isinstance(e, ast.Name) and e.id.startswith(_NODE):
            if e.id.removeprefix(_NODE) not in self.nodes:
                raise ValueError(f"%{e.id.removeprefix(_NODE)} is not defined before")
            return self.nodes[e.id.removeprefix(_NODE)]
        if isinstance(e, ast.Name) and e.id in ("inf", "nan"):
            return float(e.id)
        if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
            return -self._literal(e.operand)
        if isinstance(e, ast.Constant):
            return e.value
        if isinstance(e, ast.List):
            return [self._literal(x) for x in e.elts]
        if isinstance(e, ast.Tuple):
            return tuple(self._literal(x) for x in e.elts)
        if isinstance(e, ast.Attribute) and isinstance(e.value, ast.Name) and e.value.id == "torch":
            return _dtype(e.attr)
        if isinstance(e, ast.Call) and isinstance(e.func, ast.Name) and e.func.id in _RECIPES:
            kind, args = _RECIPES[e.func.id], [self._literal(x) for x in e.args]
            return kind(self.config, *args) if kind is RopeTable else kind(*args)
        raise ValueError(f"{ast.unparse(e).replace(_NODE, '%')} is not an argument")


def _python(text: str) -> ast.expr:
    """``text`` as a Python expression; a % outside of quotes begins the name of a node."""
    named = re.sub(r'("(?:[^"\\]|\\.)*")|%(?=\w)', lambda m: m[1] or _NODE, text)
    return ast.parse(named, mode="eval").body


def _operator(called: str) -> Any:
    namespace, _, rest = called.partition(".")
    found: Any = {"operator": operator, "aten": torch.ops.aten, "dsv2": torch.ops.dsv2}.get(namespace)
    for part in rest.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, torch._ops.OpOverload) or (namespace == "operator" and callable(found))):
        raise ValueError(f"there is no operator {called}")
    return found


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"there is no dtype {name}")
    return found


def _meta(kind: str) -> dict[str, Any]:
    """``spec`` of a tensor or of several, ``sym`` of a size."""
    e = ast.parse(kind, mode="eval").body
    if isinstance(e, ast.Tuple):
        return {"spec": tuple(_spec(x) for x in e.elts)}
    if isinstance(e, ast.Subscript) and ast.unparse(e.value) == "size":
        return {"sym": _dim(e.slice)}
    return {"spec": _spec(e)}


def _spec(e: ast.expr) -> TensorSpec:
    if not isinstance(e, ast.Subscript) or not isinstance(e.value, ast.Name):
        raise TypeError(f"{ast.unparse(e)} is not a type such as float32[batch, 48]")
    dims = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
    return TensorSpec(tuple(_dim(d) for d in dims), _dtype(e.value.id))


def _dim(e: ast.expr) -> Dim:
    if isinstance(e, ast.BinOp) and type(e.op) in _ARITHMETIC:
        value = _ARITHMETIC[type(e.op)](_dim(e.left), _dim(e.right))
        return int(value) if isinstance(value, sympy.Integer) else value
    if isinstance(e, ast.Name) and e.id in _SYMBOLS:
        return _SYMBOLS[e.id]
    if isinstance(e, ast.Constant) and type(e.value) is int:
        return e.value
    raise ValueError(f"{ast.unparse(e)} is not a dimension over batch, tokens and context")
