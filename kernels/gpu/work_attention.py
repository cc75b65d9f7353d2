"""`Work` of attention: absorbed over the paged cache, expanded, and the merge of parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsv2_compile.kernels.gpu.kernel import Config, Dims
from dsv2_compile.kernels.gpu.work import Panels, Work


def _absorbed(queries: int, block_n: int, steps: float, swap: bool, latent: int, rope: int) -> dict[str, Any]:
    """``queries``: rows of a block's tile of queries; ``latent``, ``rope``: padded columns."""
    return {
        "flops": 2.0 * steps * queries * block_n * (2 * latent + rope),
        "scores": queries * block_n,
        "width": latent + rope,
        "side": block_n if swap else queries,
        "shared": 2 * block_n * (latent + rope),
        "held": 2 * queries * (latent + rope),
        "sums": queries * latent,
    }


def _context(dims: Dims, sizes: Mapping[str, int], sequences: str) -> int:
    """Positions of all sequences together; full page tables where the call does not say."""
    return sizes.get("context", sizes[sequences] * int(dims["MAX_PAGES"]) * int(dims["PAGE"]))


def decode(dims: Dims, config: Config, sizes: Mapping[str, int], latent: int, rope: int) -> Work:
    """``latent``, ``rope``: padded columns. A part begins and ends where its share of the positions does, so that
    every piece of a row has half a tile of padding."""
    rows, parts, heads = sizes["rows"], int(dims["PARTS"]), int(dims["HEADS"])
    context = max(1, _context(dims, sizes, "rows"))
    width, values = int(dims["LATENT"]) + int(dims["ROPE"]), int(dims["LATENT"])
    block_h, block_n = config["BLOCK_H"], config["BLOCK_N"]
    busy = max(1, min(parts, -(-context // int(dims["PAGE"]))))
    pieces = (busy + rows - 1) / busy
    positions = context / busy
    steps = max(1, round(positions / block_n + pieces / 2))
    tiles, real = -(-heads // block_h), min(heads, block_h)
    return Work(
        blocks=busy * tiles,
        idle=(parts - busy) * tiles,
        steps=steps,
        loaded=2.0 * positions * width + pieces * 2 * real * width,
        stored=pieces * real * values * 4.0,
        matrix=True,
        chain=4,
        address_stages=1,
        panels=Panels(tiles, busy, 2.0 * real * width, 2.0 * positions * width, 1),
        **_absorbed(block_h, block_n, steps, bool(config["SWAP"]), latent, rope),
    )


def extend(dims: Dims, config: Config, sizes: Mapping[str, int], latent: int, rope: int) -> Work:
    """Sequences of equal length, whose new rows are their last."""
    rows, batch, heads = sizes["rows"], max(1, sizes["batch"]), int(dims["HEADS"])
    new, length = rows / batch, max(1.0, _context(dims, sizes, "batch") / batch)
    width, values = int(dims["LATENT"]) + int(dims["ROPE"]), int(dims["LATENT"])
    block_h, block_n, tile = config["BLOCK_H"], config["BLOCK_N"], config["QUERY_TILE"]
    per_sequence = max(1, -(-int(new) // tile))
    seen = max(1.0, length - new / 2 + min(tile, new) / 2)
    steps = max(1, -(-int(seen) // block_n))
    head_tiles = -(-heads // block_h)
    blocks = per_sequence * batch * head_tiles
    queries = rows * heads / blocks
    return Work(
        blocks=blocks,
        idle=max(0, (-(-rows // tile) + batch) * head_tiles - blocks),
        steps=steps,
        loaded=2.0 * width * (seen + queries),
        stored=2.0 * queries * values,
        matrix=True,
        chain=4,
        address_stages=1,
        **_absorbed(tile * block_h, block_n, steps, False, latent, rope),
    )


def prefill(dims: Dims, config: Config, sizes: Mapping[str, int], nope: int, rope: int, v: int) -> Work:
    """``nope``, ``rope``, ``v``: padded columns. Sequences as in `extend`; keys of the future are not visited but for
    the last tile's."""
    rows, batch, heads = sizes["rows"], max(1, sizes["batch"]), int(dims["HEADS"])
    new, length = rows / batch, sizes["context"] / batch
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    per_sequence = max(1, -(-int(new) // block_m))
    seen = max(1.0, length - new / 2 + min(block_m, new) / 2)
    steps = max(1, -(-int(seen) // block_n))
    blocks = per_sequence * batch * heads
    columns = int(dims["NOPE"]) + int(dims["ROPE"]) + int(dims["V"])
    queries = rows * heads / blocks
    return Work(
        blocks=blocks,
        idle=max(0, (-(-rows // block_m) + batch) * heads - blocks),
        steps=steps,
        loaded=2.0 * seen * columns + 2 * queries * (int(dims["NOPE"]) + int(dims["ROPE"])),
        stored=2.0 * queries * int(dims["V"]),
        flops=2.0 * steps * block_m * block_n * (nope + rope + v),
        matrix=True,
        side=block_m,
        scores=block_m * block_n,
        width=nope + rope,
        shared=2 * block_n * (nope + rope + v),
        held=2 * block_m * (nope + rope),
        sums=block_m * v,
        chain=3,
        # the rotary keys' addresses are loaded too, and Triton shares its stages out between both
        most_ahead=1,
    )


def combine(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    """As many pieces as there can be."""
    rows, parts, heads, latent = sizes["rows"], int(dims["PARTS"]), int(dims["HEADS"]), int(dims["LATENT"])
    split = min(rows, parts)
    pieces = (split + parts - 1) / split
    columns = -(-latent // config["BLOCK_L"])
    width = latent / columns
    steps = max(1, -(-int(pieces) // config["BLOCK_S"]))
    return Work(
        blocks=split * heads * columns,
        steps=steps,
        loaded=4.0 * pieces * (width + 1),
        stored=2.0 * width,
        flops=3.0 * steps * config["BLOCK_S"] * width,
        tile=4.0 * config["BLOCK_S"] * (width + 1),
        chain=3,
    )


def schedule(dims: Dims, config: Config, sizes: Mapping[str, int]) -> Work:
    """One block; every part looks at every row."""
    rows, parts = sizes["rows"], int(dims["PARTS"])
    steps = 2 * -(-rows // config["BLOCK_R"])
    return Work(
        blocks=1,
        steps=steps,
        loaded=8.0 * rows,
        stored=20.0 * (parts + 1),
        flops=2.0 * steps * config["BLOCK_R"] * (parts + 1),
        tile=4.0 * config["BLOCK_R"],
    )
