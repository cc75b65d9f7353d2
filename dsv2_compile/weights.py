"""The weight table: name -> recipe, a small expression over checkpoint tensors.

Passes edit recipes, never data. A recipe is evaluated in `pieces`, consecutive blocks of its
leading dimension, so the writer holds one source tensor (one expert) at a time.
Recipes are frozen and hashable; equal recipes are the same weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from dsv2_compile.config import ModelConfig


class TensorSource(Protocol):
    """Where leaves come from: a checkpoint, or a dict of tensors in tests."""

    def tensor(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Recipe:
    """Base class. ``shape`` is known without data; ``pieces`` yields blocks along dim 0."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        raise NotImplementedError

    def evaluate(self, source: TensorSource, dtype: torch.dtype) -> torch.Tensor:
        """The whole tensor, contiguous, in ``dtype``."""
        parts = list(self.pieces(source, dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def stored_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What it is stored in, in an engine of ``dtype``."""
        return dtype

    def leaves(self) -> Iterator[str]:
        """Names of the checkpoint tensors this recipe reads, in reading order."""
        for child in getattr(self, "parts", ()) or ([self.of] if hasattr(self, "of") else []):
            yield from child.leaves()


@dataclass(frozen=True)
class Source(Recipe):
    """A checkpoint tensor, by its published name."""

    name: str
    dims: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        yield source.tensor(self.name).to(dtype).contiguous()

    def leaves(self) -> Iterator[str]:
        yield self.name


@dataclass(frozen=True)
class Slice(Recipe):
    """``of[..., start:stop, ...]`` along ``dim``."""

    of: Recipe
    dim: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        s = list(self.of.shape)
        s[self.dim] = self.stop - self.start
        return tuple(s)

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        yield self.of.evaluate(source, dtype).narrow(self.dim, self.start, self.stop - self.start).contiguous()


@dataclass(frozen=True)
class Reshape(Recipe):
    of: Recipe
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        if math.prod(self.dims) != math.prod(self.of.shape):
            raise ValueError(f"cannot reshape {self.of.shape} to {self.dims}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        yield self.of.evaluate(source, dtype).reshape(self.dims)


@dataclass(frozen=True)
class Transpose(Recipe):
    of: Recipe
    dim0: int
    dim1: int

    @property
    def shape(self) -> tuple[int, ...]:
        s = list(self.of.shape)
        s[self.dim0], s[self.dim1] = s[self.dim1], s[self.dim0]
        return tuple(s)

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        yield self.of.evaluate(source, dtype).transpose(self.dim0, self.dim1).contiguous()


@dataclass(frozen=True)
class Concat(Recipe):
    """Concatenation along ``dim``; along dim 0 it streams part by part."""

    parts: tuple[Recipe, ...]
    dim: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        s = list(self.parts[0].shape)
        s[self.dim] = sum(p.shape[self.dim] for p in self.parts)
        return tuple(s)

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        if self.dim == 0:
            for p in self.parts:
                yield from p.pieces(source, dtype)
        else:
            yield torch.cat([p.evaluate(source, dtype) for p in self.parts], self.dim)


@dataclass(frozen=True)
class Stack(Recipe):
    """``torch.stack(parts)`` along a new leading dim, streamed part by part."""

    parts: tuple[Recipe, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for p in self.parts:
            yield p.evaluate(source, dtype)[None]


@dataclass(frozen=True)
class Interleave(Recipe):
    """Rows of two equal halves of dim 0, taken in turn: a0, b0, a1, b1, ..."""

    of: Recipe

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        t = self.of.evaluate(source, dtype)
        yield torch.stack(t.chunk(2), 1).reshape(t.shape).contiguous()


@dataclass(frozen=True)
class HeadMatmul(Recipe):
    """Per leading index h: left[h] @ right[h], [H, M, K] x [H, K, N] -> [H, M, N], in fp32 or wider."""

    left: Recipe
    right: Recipe

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.left.shape[:2], self.right.shape[2])

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        yield torch.bmm(self.left.evaluate(source, wide), self.right.evaluate(source, wide)).to(dtype)

    def leaves(self) -> Iterator[str]:
        yield from self.left.leaves()
        yield from self.right.leaves()


@dataclass(frozen=True)
class RopeTable(Recipe):
    """cos or sin of position * inv_freq, [positions, rope_dim / 2], times the attention factor.

    Angles are the fp32 product of an fp32 position and an fp32 frequency, as the published model
    computes them: at position 160,000 an exact product differs by up to 0.01 rad.
    """

    config: ModelConfig
    function: str
    positions: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.positions, self.config.qk_rope_head_dim // 2)

    def stored_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """At least fp32: rounding an angle's cosine to a half would turn far positions."""
        return torch.promote_types(dtype, torch.float32)

    def pieces(self, source: TensorSource, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        from dsv2_compile.model.rope import inverse_frequencies

        angles = torch.arange(self.positions, dtype=torch.float32)[:, None] * inverse_frequencies(self.config)
        wide = angles.to(torch.promote_types(dtype, torch.float32))
        table = wide.cos() if self.function == "cos" else wide.sin()
        yield (table * self.config.rope.attention_factor).to(dtype)

    def leaves(self) -> Iterator[str]:
        return iter(())


@dataclass
class WeightTable:
    """Recipes by name. Names are checkpoint names, or ``layers.N.``-style ones for derived weights."""

    recipes: dict[str, Recipe]

    def __getitem__(self, name: str) -> Recipe:
        return self.recipes[name]

    def add(self, name: str, recipe: Recipe) -> str:
        """Insert ``recipe``; a different recipe already there under that name is a bug."""
        if self.recipes.setdefault(name, recipe) != recipe:
            raise ValueError(f"weight {name} already has another recipe")
        return name
