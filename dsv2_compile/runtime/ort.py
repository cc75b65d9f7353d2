"""ONNX Runtime, and nothing else of it anywhere in the runtime: loading a program and one call of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dsv2_compile.config import ModelConfig
from dsv2_compile.engine.manifest import Manifest, ProgramEntry
from dsv2_compile.errors import Dsv2Error, IncompatibleError, ResourceError

BACKEND = "onnxruntime"

OPTIONS = frozenset(
    {
        "session.disable_prepacking",
        "session.force_spinning_stop",
        "session.intra_op.allow_spinning",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
    }
)
"""What a manifest may set: no option that names a file or loads code."""

_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
_FATAL_ONLY = 4  # errors are raised; printing them too would garble a caller's terminal


def require_compatible(manifest: Manifest) -> None:
    """IncompatibleError unless this process can run the engine. Reads no file: answers at once."""
    built, found = (_version(v) for v in (manifest.toolchain.get(BACKEND, ""), onnxruntime.__version__))
    if not built or found < built:
        raise IncompatibleError(
            f"The engine needs onnxruntime {manifest.toolchain.get(BACKEND, '(not stated)')} or later, "
            f"found {onnxruntime.__version__}.",
            "Install a newer onnxruntime, or rebuild the engine on this machine.",
        )
    if missing := {"prefill", "decode"} - set(manifest.programs):
        raise IncompatibleError(f"The engine has no program {sorted(missing)}.", "Rebuild it with dsv2-compile build.")
    for phase, entry in manifest.programs.items():
        if unknown := set(entry.session_options) - OPTIONS:
            raise IncompatibleError(
                f"Program {phase} sets ONNX Runtime options this runtime does not allow: {sorted(unknown)}.",
                "Rebuild the engine with this version of dsv2-compile.",
            )


def _version(text: str) -> tuple[int, ...]:
    """(major, minor), or () if ``text`` is no version."""
    parts = text.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(p.isdecimal() for p in parts) else ()


class Program:
    """One phase, loaded. Calls from several threads are safe."""

    def __init__(self, path: Path, entry: ProgramEntry, config: ModelConfig, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        for key, value in entry.session_options.items():
            options.add_session_config_entry(key, value)
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as e:
            raise _translate(e, f"load {path.name}") from e
        self._name = path.stem
        self._config = config
        self._has_lengths = "lengths" in {i.name for i in self._session.get_inputs()}
        self._require_signature()

    def run(
        self,
        tokens: NDArray[np.int64],
        past: NDArray[np.int64],
        lengths: NDArray[np.int64],
        caches: list[NDArray[np.float32]],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """tokens [B, S], past [B], lengths [B], per layer a contiguous cache [B, P, C], read in place.

        Returns logits [B, V] and rows [layers, B, S, C]. Both start as NaN, so a value that the
        program leaves out is seen by whoever checks for NaN.
        """
        batch, width = tokens.shape
        c = self._config
        logits = np.full((batch, c.vocab_size), np.nan, np.float32)
        rows = np.full((c.num_hidden_layers, batch, width, c.cache_dim), np.nan, np.float32)
        inputs: dict[str, NDArray[np.int64] | NDArray[np.float32]] = {"tokens": tokens, "past": past}
        if self._has_lengths:
            inputs["lengths"] = lengths
        inputs |= {f"cache.{i}": view for i, view in enumerate(caches)}
        binding = self._session.io_binding()
        for name, a in inputs.items():
            binding.bind_input(name, "cpu", 0, a.dtype.type, a.shape, a.ctypes.data)
        for name, a in (("logits", logits), ("rows", rows)):
            binding.bind_output(name, "cpu", 0, np.float32, a.shape, a.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as e:
            raise _translate(e, f"run {self._name}") from e
        return logits, rows

    def _require_signature(self) -> None:
        """The contract between compiler and runtime: names, dtypes and ranks of inputs and outputs."""
        c = self._config
        wanted: dict[str, tuple[type, int]] = {"tokens": (np.int64, 2), "past": (np.int64, 1)}
        wanted |= {"lengths": (np.int64, 1)} if self._has_lengths else {}
        wanted |= {f"cache.{i}": (np.float32, 3) for i in range(c.num_hidden_layers)}
        wanted |= {"logits": (np.float32, 2), "rows": (np.float32, 4)}
        arguments = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {a.name: (_TYPES.get(a.type), len(a.shape)) for a in arguments}
        if found != wanted:
            differ = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
            raise IncompatibleError(
                f"{self._name}.onnx does not have the inputs and outputs of an engine program.",
                "Rebuild the engine with this version of dsv2-compile.",
                differ[:20],
            )


def _translate(e: Exception, action: str) -> Dsv2Error:
    text = " ".join(str(e).split())[:400]
    if isinstance(e, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text:
        return ResourceError(f"Out of memory: ONNX Runtime could not {action}: {text}", "Use a smaller batch or model.")
    if action.startswith("load"):
        return IncompatibleError(
            f"ONNX Runtime {onnxruntime.__version__} could not {action}: {text}",
            "Rebuild the engine with the onnxruntime version installed here.",
        )
    return Dsv2Error(f"ONNX Runtime could not {action}: {text}", "Report this as a bug, with the manifest.")
