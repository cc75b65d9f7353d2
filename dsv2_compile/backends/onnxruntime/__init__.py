"""The ONNX Runtime backend: programs to ONNX models over weights that stay in the engine's safetensors files."""

import dsv2_compile.kernels.ops  # noqa: F401  the tables of rules name the dialect's operators
from dsv2_compile.backends.onnxruntime.lowering import SESSION_OPTIONS, Lowered, lower
from dsv2_compile.backends.onnxruntime.place import place

__all__ = ["SESSION_OPTIONS", "Lowered", "lower", "place"]
