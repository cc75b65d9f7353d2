"""The ONNX Runtime backend: programs to ONNX models over weights that stay in the engine's safetensors files."""

from dsv2_compile.backends.onnxruntime.lower import SESSION_OPTIONS, Lowered, lower
from dsv2_compile.backends.onnxruntime.place import place

__all__ = ["SESSION_OPTIONS", "Lowered", "lower", "place"]
