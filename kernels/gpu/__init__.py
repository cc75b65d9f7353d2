"""Triton kernels for every operator of the fused dialect, and what a compiler has to know about them."""
