"""The dtypes of a plan: their size, their name in a manifest, and how numpy holds them."""

from __future__ import annotations

import numpy as np

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "i32": 4}
NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "i32": "int32"}
SHORT = {name: short for short, name in NAMES.items()}
NUMPY = {"fp32": np.float32, "bf16": np.uint16, "fp16": np.float16, "i32": np.int32}
"""bf16 values as their bits."""
