"""`Work` of matrix products over packed rows: linear layers in all their forms, the gate, experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsv2_compile.kernels.gpu.kernel import Config, Dims
from dsv2_compile.kernels.gpu.tiles import part_of
from dsv2_compile.kernels.gpu.work import Panels, Work

WorkOf = Callable[[Dims, Config, Mapping[str, int]], Work]


def linear(weights: int = 1, out_bytes: int = 2) -> WorkOf:
    """``weights``: matrices [N, K] that share a block; ``out_bytes`` of an output. With the dim HEADS, so many
    products."""

    def work(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
        rows, n, k, batch = sizes["rows"], int(dims["N"]), int(dims["K"]), int(dims.get("HEADS", 1))
        block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
        split = config.get("SPLIT_K", 1)
        part = min(k, part_of(k, split)) if split > 1 else k
        parts, steps = -(-k // part), -(-part // block_k)
        tiles_m, tiles_n = -(-rows // block_m), -(-n // block_n)
        height, width = rows / tiles_m, n / tiles_n
        depth = k / parts
        return Work(
            blocks=tiles_m * tiles_n * parts * batch,
            idle=tiles_m * tiles_n * (split - parts) * batch,
            steps=steps,
            loaded=2 * depth * (height + weights * width),
            stored=height * width * (4 if split > 1 else out_bytes),
            chain=1 + bool(dims.get("INDEXED")),
            looped="HEADS" not in dims or k > block_k,
            panels=Panels(tiles_m, tiles_n, 2 * depth * height, 2 * depth * width * weights, config["GROUP_M"], parts)
            if batch == 1
            else None,
            **tile(block_m, block_n, block_k, steps, weights),
        )

    return work


def tile(block_m: int, block_n: int, block_k: int, steps: int, weights: int = 1) -> dict[str, Any]:
    """The part of `Work` that the three forms of a tile decide; see the source of the linear layers."""
    matrix, swap = block_m > 1, 1 < block_m < 64 <= block_n
    return {
        "flops": 2.0 * steps * block_m * block_n * block_k * weights,
        "run": 2 * block_k,
        "matrix": matrix,
        "side": block_n if swap else block_m,
        "shared": 2 * block_k * (block_m + block_n * weights) if matrix else 0,
        "sums": block_n * weights * (block_m if matrix else block_k),
    }


def gate(dims: Dims, config: Config, sizes: Mapping[str, int], columns: int) -> Work:
    """``columns``: experts with their padding. The ranking of scores goes over them once a choice."""
    rows, k, top_k = sizes["rows"], int(dims["K"]), int(dims["TOP_K"])
    tokens, block_k = config["TOKENS"], config["BLOCK_K"]
    blocks, steps = -(-rows // tokens), -(-k // block_k)
    return Work(
        blocks=blocks,
        steps=steps,
        loaded=2.0 * k * (rows / blocks + int(dims["EXPERTS"])),
        stored=8.0 * top_k * rows / blocks,
        vector=float(tokens * columns * (8 + 8 * top_k)),
        **{**tile(tokens, columns, block_k, steps), "side": tokens},
    )


def expected_experts(dims: Dims, rows: int) -> float:
    """Distinct experts that uniform routing hits."""
    experts = int(dims["EXPERTS"])
    return experts * (1 - (1 - int(dims["TOP_K"]) / experts) ** rows)


def experts(weights: int, chain: int) -> WorkOf:
    """Uniform routing: an expert that is hit has its share of the entries, and half a tile of padding beside the
    first one, as the remainders are spread evenly. ``chain``: as in `Work`."""

    def work(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
        rows, n, k = sizes["rows"], int(dims["N"]), int(dims["K"])
        block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
        entries = rows * int(dims["TOP_K"])
        hit = expected_experts(dims, rows)
        each = entries / hit
        tiles_m = hit * max(1.0, each / block_m + (block_m - 1) / (2 * block_m))
        tiles_n, steps = -(-n // block_n), -(-k // block_k)
        blocks = max(1, round(tiles_m * tiles_n))
        launched = min(entries, -(-entries // block_m) + int(dims["EXPERTS"])) * tiles_n
        width = n / tiles_n
        return Work(
            blocks=blocks,
            idle=max(0, launched - blocks),
            steps=steps,
            # lines beyond the last entry repeat it: the L1 cache or the same line of L2
            loaded=2.0 * k * (entries / tiles_m + weights * width),
            stored=2.0 * width * entries / tiles_m,
            chain=chain,
            **tile(block_m, block_n, block_k, steps, weights),
        )

    return work
