"""Triton sources, nothing else: what they are for stands beside the kernel that names them, one folder up."""
