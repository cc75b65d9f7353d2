"""Streams text from a dsv2-compile engine in Triton Inference Server's Python backend.

`dsv2-compile package` puts this file beside the engine, as model.py. It needs dsv2-compile, numpy, tokenizers and
onnxruntime in the Python that Triton runs; no torch: `pip install --no-deps dsv2-compile` and these three.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from dsv2_compile.errors import Dsv2Error, ResourceError, UsageError
from dsv2_compile.runtime import Engine, Sampling, Token

ENGINE = Path(__file__).with_name("engine")


class TritonPythonModel:
    """Requests join one running batch as they come. The name of the class is Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._engine = Engine.load(ENGINE, int(parameters["threads"]["string_value"]) or None)
        self._scheduler = self._engine.scheduler()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            answer = _Answer(request.get_response_sender())
            try:
                answer.stream = bool(_one(request, "stream", False))
                sampling = Sampling(
                    float(_one(request, "temperature", 0.0)),
                    int(_one(request, "top_k", 0)),
                    float(_one(request, "top_p", 1.0)),
                    int(_one(request, "seed", 0)),
                )
                limit, stops = int(_one(request, "max_tokens", 128)), _all(request, "stop_token_ids") or ()
                self._scheduler.submit(_prompt(request), limit, sampling, stops, on_token=answer.take)
            except Dsv2Error as e:
                answer.fail(e)

    def finalize(self) -> None:
        self._scheduler.close()
        self._engine.close()


class _Answer:
    """Responses to one request: with ``stream`` one a token, else one in all."""

    def __init__(self, sender: Any) -> None:
        self.stream = False
        self._sender = sender
        self._text, self._ids = "", list[int]()

    def take(self, token: Token) -> None:
        """On the scheduler's thread."""
        if token.error or token.finish == "cancelled":
            self.fail(token.error or ResourceError("The model is being unloaded.", "Ask another server."))
            return
        if self._sender.is_cancelled() and not token.finish:
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            raise ConnectionAbortedError  # which takes the request out of the batch
        self._text += token.text
        self._ids.append(token.id)
        if self.stream or token.finish:
            self._send(token.finish or "")

    def fail(self, e: Exception) -> None:
        kind = pb_utils.TritonError
        code = kind.INVALID_ARG if isinstance(e, UsageError) else kind.INTERNAL
        error = kind(str(e), kind.UNAVAILABLE if isinstance(e, ResourceError) else code)
        self._respond(pb_utils.InferenceResponse(error=error), True)

    def _send(self, finish: str) -> None:
        tensors = [
            pb_utils.Tensor("text_output", np.array([self._text.encode()], np.object_)),
            pb_utils.Tensor("output_ids", np.array(self._ids, np.int64)),
            pb_utils.Tensor("finish_reason", np.array([finish.encode()], np.object_)),
        ]
        self._text, self._ids = "", []
        self._respond(pb_utils.InferenceResponse(output_tensors=tensors), bool(finish))

    def _respond(self, response: Any, last: bool) -> None:
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


def _prompt(request: Any) -> str | list[int]:
    text, ids = _one(request, "text_input", None), _all(request, "input_ids")
    if (text is None) == (ids is None):
        raise UsageError("A request has text_input or input_ids, one of them.", "Give the prompt as one of them.")
    if ids is not None:
        return ids
    try:
        return str(text.decode())
    except UnicodeDecodeError as e:
        raise UsageError("text_input is not UTF-8.", "Convert the prompt.") from e


def _all(request: Any, name: str) -> list[Any] | None:
    """A copy of the input's values; Triton takes its own back after `execute`."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else list(tensor.as_numpy().reshape(-1).tolist())


def _one(request: Any, name: str, default: Any) -> Any:
    values = _all(request, name)
    if values is None:
        return default
    if len(values) != 1:
        raise UsageError(f"{name} has {len(values)} values.", "Give one.")
    return values[0]
