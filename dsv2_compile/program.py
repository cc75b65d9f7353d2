"""What flows between the stages: programs, symbols, tensor specs and the weight table.

A `Program` is one phase of the model as an FX graph. Placeholders are the run-time inputs,
``get_attr`` nodes name weights of the weight table, every tensor node carries ``meta["spec"]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy
import torch
from torch import fx

from dsv2_compile.config import ModelConfig
from dsv2_compile.weights import WeightTable

Dim: TypeAlias = int | sympy.Expr

BATCH, TOKENS, CONTEXT = (sympy.Symbol(n, integer=True, nonnegative=True) for n in ("batch", "tokens", "context"))
"""Sequences in the call; new tokens per sequence, padded; cached positions visible to the call."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape (ints and sympy expressions over the program's symbols) and dtype of one value."""

    shape: tuple[Dim, ...]
    dtype: torch.dtype

    def concrete(self, **symbols: int) -> tuple[int, ...]:
        values = {sympy.Symbol(k, integer=True, nonnegative=True): v for k, v in symbols.items()}
        return tuple(int(d.subs(values)) if isinstance(d, sympy.Expr) else d for d in self.shape)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


@dataclass
class Program:
    """One phase.

    ``prefill``: inputs tokens int64 [batch, tokens], past int64 [batch] (cached positions of each
    row), lengths int64 [batch] (valid new tokens, the rest is right padding) and per layer
    ``cache.N`` [batch, context, cache_dim]; outputs logits [batch, vocab] of each row's last valid
    token and per layer ``rows.N`` [batch, tokens, cache_dim], the new cache rows.
    ``decode``: the same with tokens = 1 and no ``lengths``.
    A cached position j of row b is visible iff j < past[b]; new ones are causal.
    """

    phase: str
    config: ModelConfig
    graph: fx.Graph
    symbols: dict[str, tuple[int, int]]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    weights: WeightTable
    notes: dict[str, Any] = field(default_factory=dict)

    def nodes(self, target: Any = None) -> Iterator[fx.Node]:
        """The nodes in order; with ``target``, only the calls of that operator."""
        return (n for n in self.graph.nodes if target is None or (n.op == "call_function" and n.target is target))
