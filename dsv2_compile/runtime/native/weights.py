"""Weights from the files of an engine to the memory of a GPU, in pieces that fit a staging buffer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from dsv2_compile.engine.placement import Placement
from dsv2_compile.errors import COPY_AGAIN, IntegrityError
from dsv2_compile.runtime.native.driver import Bytes, Driver


def upload(driver: Driver, root: Path, reads: Iterable[tuple[Placement, int]], base: int, staging: Bytes) -> None:
    """Copy every placement to its offset from address ``base``. IntegrityError for a file that cannot be read or ends
    too early: read and not mapped, since a mapped file that someone cuts short ends the process."""
    at = 0
    for file, group in groupby(reads, lambda read: read[0].file):
        try:
            with open(root / file, "rb", buffering=0) as f:
                for placement, offset in group:
                    f.seek(placement.offset)
                    done = 0
                    while done < placement.nbytes:
                        if at == len(staging):
                            driver.sync()
                            at = 0
                        piece = staging[at : at + placement.nbytes - done]
                        count = f.readinto(piece.data)
                        if not count:
                            raise IntegrityError(f"{file} ends before its last weight.", COPY_AGAIN)
                        driver.copy_in(base + offset + done, piece[:count])
                        at += count
                        done += count
        except OSError as e:
            raise IntegrityError(f"{file}: {e.strerror}.", COPY_AGAIN) from None
    driver.sync()
