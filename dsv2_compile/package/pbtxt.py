"""The configurations of the models in a repository, in protobuf's text format.

Field names and values are those of `ModelConfig` in Triton's model_config.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsv2_compile.engine.manifest import ProgramEntry, TensorEntry

_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}
_CPU = {"kind": "KIND_CPU", "count": 1}

STREAM_INPUTS: dict[str, tuple[str, int]] = {
    "text_input": ("TYPE_STRING", 1),
    "input_ids": ("TYPE_INT64", -1),
    "stream": ("TYPE_BOOL", 1),
    "max_tokens": ("TYPE_INT32", 1),
    "temperature": ("TYPE_FP32", 1),
    "top_k": ("TYPE_INT32", 1),
    "top_p": ("TYPE_FP32", 1),
    "seed": ("TYPE_UINT64", 1),
    "stop_token_ids": ("TYPE_INT64", -1),
}
"""name -> type, dim; each may be left out, but for one of the first two."""
STREAM_OUTPUTS = {
    "text_output": ("TYPE_STRING", 1),
    "output_ids": ("TYPE_INT64", -1),
    "finish_reason": ("TYPE_STRING", 1),
}


def streaming(name: str) -> str:
    """Of the model that streams text, in Triton's Python backend. It batches by itself."""
    return _text(
        {
            "name": f'"{name}"',
            "backend": '"python"',
            "max_batch_size": 0,
            "model_transaction_policy": {"decoupled": "true"},
            "input": [_tensor(n, t, [d]) | {"optional": "true"} for n, (t, d) in STREAM_INPUTS.items()],
            "output": [_tensor(n, t, [d]) for n, (t, d) in STREAM_OUTPUTS.items()],
            "instance_group": _CPU,
            "parameters": {"key": '"threads"', "value": {"string_value": '"0"'}},
        }
    )


def program(name: str, entry: ProgramEntry) -> str:
    """Of one ONNX program of an engine, in Triton's ONNX Runtime backend. Its own first dim is the batch."""
    return _text(
        {
            "name": f'"{name}"',
            "backend": '"onnxruntime"',
            "default_model_filename": f'"{entry.file}"',
            "max_batch_size": 0,
            "input": [_declared(n, t) for n, t in entry.inputs.items()],
            "output": [_declared(n, t) for n, t in entry.outputs.items()],
            "instance_group": _CPU,
        }
    )


def _declared(name: str, tensor: TensorEntry) -> dict[str, Any]:
    return _tensor(name, _TYPES[tensor.dtype], [d if isinstance(d, int) else -1 for d in tensor.shape])


def _tensor(name: str, kind: str, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": f'"{name}"', "data_type": kind, "dims": [*dims]}


def _text(fields: Mapping[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{_text(item, indent + '  ')}{indent}}}")
            else:
                lines.append(f"{indent}{name}: {item}")
    return "".join(f"{line}\n" for line in lines)
