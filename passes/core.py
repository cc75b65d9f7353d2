"""What a pass is: its declaration, its record, and the helpers to rewrite a program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import PassError
from dsv2_compile.kernels import ops  # noqa: F401 - registers the dialect
from dsv2_compile.kernels.dialect import OPS
from dsv2_compile.passes.match import Call, Match, Miss, match
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.weights import Recipe

BITWISE = 0.0
"""Claim of a pass that leaves every result bit for bit as it was."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to one program. ``error``: relative fp64 difference on the twin, if checked."""

    name: str
    phase: str
    claim: str
    matches: int
    expected: int | None
    nodes_before: int
    nodes_after: int
    skipped: bool = False
    reason: str = ""
    error: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What ``Pass.apply`` reports: how many matches, why it was skipped or decided so, the nearest miss."""

    matches: int
    reason: str = ""
    skipped: bool = False
    miss: Miss | None = None


class Pass:
    """One rewrite. ``tolerance`` is its claim: 0 is bitwise, else the largest relative fp64 difference
    on the twin (it reassociates sums). ``requires``: passes that must have run before."""

    name: ClassVar[str]
    tolerance: ClassVar[float] = BITWISE
    requires: ClassVar[tuple[str, ...]] = ()

    def expected(self, config: ModelConfig, phase: str) -> int | None:
        """How many matches the config promises; None where it promises nothing."""
        return None

    def apply(self, program: Program) -> Outcome:
        raise NotImplementedError

    @property
    def claim(self) -> str:
        return "bitwise" if self.tolerance == BITWISE else f"reassociates({self.tolerance:g})"


REGISTRY: dict[str, type[Pass]] = {}


def register(cls: type[Pass]) -> type[Pass]:
    if REGISTRY.setdefault(cls.name, cls) is not cls:
        raise ValueError(f"two passes are named {cls.name}")
    return cls


def rewrite(program: Program, pattern: Call, change: Callable[[Match], None]) -> Outcome:
    """Match ``pattern`` at every call of its operator, in order, and ``change`` each match at once.

    Matching and changing take turns, so a match never holds a node that an earlier change replaced.
    """
    count = 0
    nearest: Miss | None = None
    for node in list(program.nodes(pattern.target)):
        got = match(pattern, node)
        if isinstance(got, Match):
            change(got)
            count += 1
        elif nearest is None or got.size > nearest.size:
            nearest = got
    sweep(program)
    return Outcome(count, miss=nearest)


def specs_of(value: Any) -> Any:
    return fx.map_arg(value, lambda n: n.meta["spec"])


def call(program: Program, at: fx.Node, overload: Any, *args: Any) -> fx.Node:
    """Insert a dialect call before ``at``, with its shape from the operator's rule."""
    return aten(program, at, overload, OPS[overload].specs(*specs_of(args)), *args)


def aten(program: Program, at: fx.Node, overload: Any, spec: Any, *args: Any) -> fx.Node:
    """Insert an ATen call before ``at`` with a given spec; it is said to come from the same line."""
    with program.graph.inserting_before(at):
        node = program.graph.call_function(overload, args)
    node.meta |= {"spec": spec} | ({"from": at.meta["from"]} if "from" in at.meta else {})
    return node


def take(program: Program, at: fx.Node, node: fx.Node, index: int) -> fx.Node:
    """``node[index]`` of a multi-output node."""
    return aten(program, at, operator.getitem, node.meta["spec"][index], node, index)


def split(program: Program, at: fx.Node, x: fx.Node, sizes: Sequence[int]) -> list[fx.Node]:
    """``x`` split along its last dim."""
    spec: TensorSpec = x.meta["spec"]
    parts = tuple(TensorSpec((*spec.shape[:-1], n), spec.dtype) for n in sizes)
    node = aten(program, at, torch.ops.aten.split_with_sizes.default, parts, x, list(sizes), -1)
    return [take(program, at, node, i) for i in range(len(sizes))]


def weight(program: Program, name: str, recipe: Recipe, dtype: torch.dtype) -> fx.Node:
    """A node for a derived weight, before the body of the graph, entered in the weight table."""
    program.weights.add(name, recipe)
    with program.graph.inserting_before(next(n for n in program.graph.nodes if n.op == "call_function")):
        node = program.graph.create_node("get_attr", name, name=name.replace(".", "_"))
    node.meta["spec"] = TensorSpec(recipe.shape, dtype)
    return node


def replace(old: fx.Node, new: fx.Node) -> None:
    """Every use of ``old`` becomes ``new``; the results must agree in shape and dtype."""
    if old.meta["spec"] != new.meta["spec"]:
        raise PassError(
            f"{new.name} gives {new.meta['spec']} where {old.name} gave {old.meta['spec']}",
            "this is a bug of the pass; report it with the config",
        )
    old.replace_all_uses_with(new)


def sweep(program: Program) -> int:
    """Remove nodes without users and weights without nodes; how many nodes went."""
    before = len(program.graph.nodes)
    for node in reversed(list(program.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            program.graph.erase_node(node)
    used = {n.target for n in program.graph.nodes if n.op == "get_attr"}
    program.weights.recipes = {k: v for k, v in program.weights.recipes.items() if k in used}
    return before - len(program.graph.nodes)
