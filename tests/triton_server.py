"""What Triton Inference Server has, as far as its documentation says: none of it has been held to a real one.

`pb_utils` stands in for triton_python_backend_utils, and `CONFIG` is the part of model_config.proto that we write.
"""

from __future__ import annotations

import queue
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

FINAL = 1
_F = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, dict[str, tuple[int, Any, bool]]] = {
    "ModelConfig": {
        "name": (1, _F.TYPE_STRING, False),
        "max_batch_size": (4, _F.TYPE_INT32, False),
        "input": (5, "ModelInput", True),
        "output": (6, "ModelOutput", True),
        "instance_group": (7, "ModelInstanceGroup", True),
        "default_model_filename": (8, _F.TYPE_STRING, False),
        "parameters": (14, "ModelConfig.ParametersEntry", True),
        "backend": (17, _F.TYPE_STRING, False),
        "model_transaction_policy": (19, "ModelTransactionPolicy", False),
    },
    "ModelInput": {
        "name": (1, _F.TYPE_STRING, False),
        "data_type": (2, _F.TYPE_ENUM, False),
        "dims": (4, _F.TYPE_INT64, True),
        "optional": (8, _F.TYPE_BOOL, False),
    },
    "ModelOutput": {
        "name": (1, _F.TYPE_STRING, False),
        "data_type": (2, _F.TYPE_ENUM, False),
        "dims": (3, _F.TYPE_INT64, True),
    },
    "ModelInstanceGroup": {"count": (2, _F.TYPE_INT32, False), "kind": (4, _F.TYPE_ENUM, False)},
    "ModelTransactionPolicy": {"decoupled": (1, _F.TYPE_BOOL, False)},
    "ModelParameter": {"string_value": (1, _F.TYPE_STRING, False)},
}
"""message -> field -> number, type, repeated."""
_ENUMS = {
    "data_type": ("DataType", {"TYPE_BOOL": 1, "TYPE_UINT64": 5, "TYPE_INT32": 8, "TYPE_INT64": 9, "TYPE_FP32": 11}),
    "kind": ("Kind", {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2}),
}
TYPES = {1: np.bool_, 5: np.uint64, 8: np.int32, 9: np.int64, 11: np.float32, 13: np.object_}


def config(text: str) -> Any:
    """``text`` as a ModelConfig; an error if it is none."""
    return text_format.Parse(text, _config_class()())


def _config_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="part_of_model_config.proto", package="part", syntax="proto3")
    data_type = file.enum_type.add(name="DataType")
    for name, number in {"TYPE_INVALID": 0, **_ENUMS["data_type"][1], "TYPE_STRING": 13}.items():
        data_type.value.add(name=name, number=number)
    kind = file.enum_type.add(name="Kind")
    for name, number in _ENUMS["kind"][1].items():
        kind.value.add(name=name, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, of, repeated) in fields.items():
            f = message.field.add(name=field_name, number=number)
            f.label = _F.LABEL_REPEATED if repeated else _F.LABEL_OPTIONAL
            f.type = _F.TYPE_MESSAGE if isinstance(of, str) else of
            if isinstance(of, str):
                f.type_name = f".part.{of}"
            elif of == _F.TYPE_ENUM:
                f.type_name = f".part.{_ENUMS[field_name][0]}"
    entry = file.message_type[0].nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_F.TYPE_STRING, label=_F.LABEL_OPTIONAL)
    value = entry.field.add(name="value", number=2, type=_F.TYPE_MESSAGE, label=_F.LABEL_OPTIONAL)
    value.type_name = ".part.ModelParameter"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("part.ModelConfig"))


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError(Exception):
    INTERNAL, INVALID_ARG, UNAVAILABLE = 1, 3, 4

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code
        super().__init__(message)


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def value(self, name: str) -> Any:
        (tensor,) = [t for t in self.output_tensors if t.name == name]
        return tensor.array.tolist()


class Sender:
    def __init__(self) -> None:
        self.sent: queue.SimpleQueue[tuple[InferenceResponse | None, int]] = queue.SimpleQueue()
        self.cancelled = self.closed = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.closed, "a response after the last one"
        self.closed = bool(flags & FINAL)
        self.sent.put((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled

    def all(self) -> list[InferenceResponse]:
        """Up to the last response."""
        found = []
        while True:
            response, flags = self.sent.get(timeout=30)
            found += [response] if response else []
            if flags & FINAL:
                return found


class Request:
    def __init__(self, **inputs: np.ndarray) -> None:
        self.inputs = {name: Tensor(name, array) for name, array in inputs.items()}
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


def pb_utils() -> types.ModuleType:
    module = types.ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=InferenceResponse,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
    )
    return module
