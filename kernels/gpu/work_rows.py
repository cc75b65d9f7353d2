"""`Work` of kernels that go over rows once: norms, sums, tables, rotations, sorting, sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dsv2_compile.kernels.gpu.kernel import Config, Dims
from dsv2_compile.kernels.gpu.work import Work

WorkOf = Callable[[Dims, Config, Mapping[str, int]], Work]


def norm(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    n, residual = int(dims["N"]), bool(dims["RESIDUAL"])
    return Work(
        blocks=sizes["rows"],
        steps=1,
        loaded=2.0 * n * (2 + residual),
        stored=2.0 * n * (1 + residual),
        flops=6.0 * n,
        chain=1 + bool(dims["INDEXED"]),
    )


def latent_cache(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    latent, rope = int(dims["LATENT"]), int(dims["ROPE"])
    return Work(
        blocks=sizes["rows"],
        steps=1,
        loaded=2.0 * (2 * latent + rope) + 4 * rope + 8,
        stored=2.0 * (latent + rope),
        flops=6.0 * (latent + rope),
        chain=3,
    )


def rope_query(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    heads, rope, tiles = int(dims["HEADS"]), int(dims["ROPE"]), -(-int(dims["HEADS"]) // config["BLOCK_H"])
    values = heads / tiles * rope
    return Work(
        blocks=sizes["rows"] * tiles,
        steps=1,
        loaded=2 * values + 4 * rope + 4,
        stored=2 * values,
        flops=4 * values,
        chain=2,
    )


def embedding(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    n = int(dims["N"])
    tiles = -(-n // config["BLOCK"])
    width = n / tiles
    return Work(sizes["rows"] * tiles, 1, 2 * width + 4, 2 * width, chain=2)


def summed(knob: str, terms: Callable[[Dims], int], bytes_in: int, bytes_out: int = 2) -> WorkOf:
    """Rows of N columns: ``terms`` values of ``bytes_in`` each to one of ``bytes_out``. ``knob``: a block's columns."""

    def work(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
        n, count = int(dims["N"]), terms(dims)
        tiles = -(-n // config[knob])
        width = n / tiles
        return Work(sizes["rows"] * tiles, 1, bytes_in * count * width, bytes_out * width, count * width)

    return work


def dispatch(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    """Every expert's block reads all ids twice; the running sum takes several operations an id."""
    entries, experts = sizes["rows"] * int(dims["TOP_K"]), int(dims["EXPERTS"])
    turns = -(-entries // config["BLOCK"])
    return Work(
        blocks=experts,
        steps=2 * turns,
        loaded=8.0 * entries,
        stored=4.0 * (entries / experts + 1),
        flops=12.0 * turns * config["BLOCK"],
        tile=4.0 * config["BLOCK"],
    )


def sampling(passes: int, operations: int) -> WorkOf:
    """``passes`` over a row of logits, so many ``operations`` a logit."""

    def work(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
        vocab = int(dims["VOCAB"])
        steps = passes * -(-vocab // config["BLOCK"])
        return Work(
            blocks=sizes["rows"],
            steps=steps,
            loaded=4.0 * passes * vocab,
            stored=4.0,
            flops=float(operations * steps * config["BLOCK"]),
            tile=4.0 * config["BLOCK"],
        )

    return work
