"""Points the weights of a lowered model at their bytes in the engine's safetensors files."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from dsv2_compile.engine.placement import Placement
from dsv2_compile.errors import ModelError

DTYPES = {TensorProto.FLOAT: "float32"}


def place(model: onnx.ModelProto, placement: Mapping[str, Placement]) -> onnx.ModelProto:
    """Fill location, offset and length of every external initializer, in place; returns ``model``.

    Locations are those of the placements: relative to the folder the model is saved in.
    Raises ModelError for weights without a placement, or with another shape or dtype, naming each.
    """
    problems = []
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = placement.get(tensor.name)
        want = (DTYPES[tensor.data_type], tuple(tensor.dims))
        if where is None:
            problems.append(f"{tensor.name}: not in the weights files")
        elif (where.dtype, tuple(where.shape)) != want or not where.consistent:
            problems.append(f"{tensor.name}: {where.dtype} {list(where.shape)}, {where.nbytes} bytes, not {want}")
        else:
            del tensor.external_data[:]
            entries = {"location": where.file, "offset": where.offset, "length": where.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
    if problems:
        raise ModelError(
            f"{len(problems)} weights of {model.graph.name} have no place in the weights files",
            "write the weights of every program that was lowered, in the dtype of the engine",
            problems,
        )
    return model
