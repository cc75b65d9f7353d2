"""Run a program's graph with torch, node by node. No compilation, no module: the graph is the meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from dsv2_compile.program import Program


@torch.no_grad()
def evaluate(
    program: Program,
    inputs: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    watch: Callable[[fx.Node, Any], None] = lambda node, value: None,
) -> dict[str, torch.Tensor]:
    """Outputs by name. ``weights`` maps weight-table names to tensors; ``watch`` sees the value of every node;
    values are freed after their last use."""
    env: dict[fx.Node, Any] = {}
    last: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        for arg in node.all_input_nodes:
            last[arg] = node
    frees: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        frees.setdefault(user, []).append(value)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = inputs[node.target]
        elif node.op == "get_attr":
            env[node] = weights[node.target]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            env[node] = node.target(*args, **kwargs)
        else:
            return dict(zip(program.outputs, (env[n] for n in node.args[0]), strict=True))
        watch(node, env[node])
        for value in frees.get(node, ()):
            del env[value]
    raise ValueError("the graph has no output node")
