"""Where this program keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DSV2_CACHE_DIR"


def cache_folder(name: str) -> Path:
    """The folder ``name`` in ``DSV2_CACHE_DIR``, else in ~/.cache/dsv2-compile. It may not exist yet."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/dsv2-compile").expanduser() / name
