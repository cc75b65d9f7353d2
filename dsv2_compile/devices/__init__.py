"""A GPU to compute with outside of an engine, or the host in its place. What checks and measures kernels uses it."""
