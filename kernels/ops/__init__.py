"""The operator families. Importing this package registers them all."""

from dsv2_compile.kernels.ops import attention, linear, moe, norm, rope

__all__ = ["attention", "linear", "moe", "norm", "rope"]
