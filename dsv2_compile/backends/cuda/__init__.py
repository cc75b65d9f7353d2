"""The native backend: Triton kernels compiled ahead of time, and plans that launch them."""
