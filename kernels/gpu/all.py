"""Importing this registers every kernel."""

from dsv2_compile.kernels.gpu import cache, dispatch, embedding, gate, linear, mla_prefill, moe, norm, sampling

__all__ = ["cache", "dispatch", "embedding", "gate", "linear", "mla_prefill", "moe", "norm", "sampling"]
