"""What a launch of a kernel comes to, by formula: what its time is predicted from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panels:
    """Order in which blocks go over a product of ``rows`` by ``columns`` tiles, ``repeats`` times: ``group`` rows of
    tiles together, column by column. ``row_bytes``, ``column_bytes``: operands of one row or column of tiles."""

    rows: int
    columns: int
    row_bytes: float
    column_bytes: float
    group: int
    repeats: int = 1


@dataclass(frozen=True)
class Work:
    """Of one block, on average over the blocks that have something to do; bytes at 2 an element of T.

    - ``blocks``: all of them; ``idle``: those beside them that end at once.
    - ``steps``: turns of a block's main loop; ``looped``: the compiler sees a loop, and not its only turn.
    - ``loaded``, ``stored``: bytes that a block asks of L2 and gives to it. What a mask keeps away is not asked for.
    - ``flops``: padding included: a tile of 16 rows for one row is 16 rows of work. ``matrix``: they are on matrix
      units; ``side``: tile rows on the M side of these; ``sums``: the fp32 accumulators.
    - ``scores``: of a step of attention, products of ``width`` terms, beside the products that are summed up.
    - ``vector``: elementwise operations beside the products.
    - ``shared``: bytes of one stage of the tiles; ``held``: bytes that stay in shared memory for all of the loop;
      ``tile``: bytes that a step loads, masked ones too, where these are not ``shared``.
    - ``run``: bytes in a row, of what a step loads from memory; a whole line or more unless said.
    - ``chain``: loads that wait for one another until the first tile is there.
    - ``address_stages``: stages of the pipeline that only fetch addresses; ``most_ahead``: tiles that it loads ahead
      at most.
    - ``panels``: see `Panels`; without them what several blocks read is in L2.
    """

    blocks: int
    steps: int
    loaded: float
    stored: float
    flops: float = 0.0
    matrix: bool = False
    shared: int = 0
    sums: int = 0
    tile: float = 0.0
    idle: int = 0
    side: int = 0
    vector: float = 0.0
    scores: int = 0
    width: int = 0
    held: int = 0
    run: int = 128
    chain: int = 1
    address_stages: int = 0
    most_ahead: int = 99
    looped: bool = True
    panels: Panels | None = None
