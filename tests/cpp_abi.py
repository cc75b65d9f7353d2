"""The C ABI of the C++ runtime (include/dsv2/dsv2.h) by ctypes, and its handles as small classes over numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_uint64
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsv2_compile.runtime.sampling import Draw, Sampling
from tests.cpp_structs import (
    FLOATS,
    FUNCTIONS,
    INTS,
    ON_TOKEN,
    CDraw,
    CEngineInfo,
    CError,
    CLoadOptions,
    CRequest,
    CSampling,
    CSchedulerOptions,
    CStats,
    Handle,
)

OK, INTERNAL, USAGE, MODEL, NUMERIC, INCOMPATIBLE, RESOURCE, INTEGRITY = 0, 1, 2, 3, 4, 5, 6, 8
FINISH = (None, "stop", "length", "cancelled", "failed")


class AbiError(Exception):
    """What dsv2_error says."""

    def __init__(self, code: int, cause: str, remedy: str, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join((f"[{code}] {cause}", *problems, remedy)))
        self.code, self.cause, self.remedy, self.problems = code, cause, remedy, problems


Token = tuple[int, int, str | None, int]
"""Request, token or -1, finish, code."""
OnToken = Callable[[Token], object]


class Library:
    """libdsv2 at ``path``. ``call`` is any of its functions by the name after dsv2_; a failure is an AbiError."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        self.lib.dsv2_version.restype = c_char_p
        self.version = self.lib.dsv2_version().decode()
        for name, arguments in FUNCTIONS.items():
            function = getattr(self.lib, f"dsv2_{name}")
            function.argtypes, function.restype = (*arguments, POINTER(CError)), c_int32

    def call(self, name: str, *arguments: Any) -> None:
        error = CError()
        code = getattr(self.lib, f"dsv2_{name}")(*arguments, byref(error))
        if code:
            texts = (error.cause.decode(), error.remedy.decode())
            assert code == error.code and all(texts), (code, error.code, texts)
            raise AbiError(code, *texts, tuple(error.problems.decode().splitlines()))

    def load(self, path: Path, threads: int = 0, cache_tokens: int = 0, onnxruntime: str | None = None) -> Engine:
        options = CLoadOptions(threads, cache_tokens, onnxruntime.encode() if onnxruntime else None)
        handle = Handle()
        self.call("engine_load", str(path).encode(), byref(options), byref(handle))
        return Engine(self, handle)

    def uniforms(self, seed: int, stream: int, count: int) -> NDArray[np.float64]:
        out = np.empty(count)
        self.call("uniforms", seed, stream, count, out.ctypes.data_as(POINTER(c_double)))
        return out


class _Owner:
    """A handle, closed at the end of ``with``."""

    kind = ""

    def __init__(self, library: Library, handle: Handle) -> None:
        self.library, self.handle = library, handle

    def call(self, name: str, *arguments: Any) -> None:
        self.library.call(name, self.handle, *arguments)

    def close(self) -> None:
        self.call(f"{self.kind}_close")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Engine(_Owner):
    kind = "engine"

    @property
    def info(self) -> CEngineInfo:
        out = CEngineInfo()
        self.call("engine_info_get", byref(out))
        return out

    def session(self, max_batch: int = 1, max_tokens: int = 0) -> Session:
        handle = Handle()
        self.call("session_open", max_batch, max_tokens, byref(handle))
        return Session(self.library, handle, self.info)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        """The tokens of each prompt. ``on_token`` cancels a prompt by returning something true."""
        made: list[list[int]] = [[] for _ in prompts]

        def seen(token: Token) -> object:
            if token[1] != -1:
                made[token[0]].append(token[1])
            return on_token(token) if on_token else None

        flat = _ints([t for p in prompts for t in p])
        lengths = (c_int64 * len(prompts))(*map(len, prompts))
        chosen = byref(CSampling.of(sampling)) if sampling else None
        self.call("generate", flat, lengths, len(prompts), max_new_tokens, chosen, _on_token(seen), None)
        return made

    def scheduler(self, **options: int) -> Scheduler:
        """``options``: fields of dsv2_scheduler_options."""
        handle = Handle()
        self.call("scheduler_open", byref(CSchedulerOptions(**options)), byref(handle))
        return Scheduler(self.library, handle)


class Session(_Owner):
    """As `dsv2_compile.runtime.session.Session`."""

    kind = "session"

    def __init__(self, library: Library, handle: Handle, info: CEngineInfo) -> None:
        super().__init__(library, handle)
        self.vocab_size = info.vocab_size

    def prefill(self, tokens: ArrayLike, lengths: ArrayLike, slots: ArrayLike | None = None) -> NDArray[np.float32]:
        return self._logits("prefill", _batch(tokens, lengths, slots))

    def extend(self, tokens: ArrayLike, lengths: ArrayLike, slots: ArrayLike | None = None) -> NDArray[np.float32]:
        return self._logits("extend", _batch(tokens, lengths, slots))

    def decode(self, tokens: ArrayLike, slots: ArrayLike | None = None) -> NDArray[np.float32]:
        return self._logits("decode", _column(tokens, slots))

    def start(
        self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: ArrayLike | None = None
    ) -> NDArray[np.int32]:
        return self._tokens("start", _batch(tokens, lengths, slots), draws)

    def resume(
        self, tokens: ArrayLike, lengths: ArrayLike, draws: Sequence[Draw], slots: ArrayLike | None = None
    ) -> NDArray[np.int32]:
        return self._tokens("resume", _batch(tokens, lengths, slots), draws)

    def step(self, tokens: ArrayLike, draws: Sequence[Draw], slots: ArrayLike | None = None) -> NDArray[np.int32]:
        return self._tokens("step", _column(tokens, slots), draws)

    def restore(self, rows: ArrayLike, lengths: ArrayLike, slots: ArrayLike | None = None) -> None:
        values = np.ascontiguousarray(rows, np.float32)
        at = values.ctypes.data_as(FLOATS)
        self.call("session_restore", at, values.shape[1], values.shape[2], _ints(lengths), _ints(slots))

    def free(self, slots: Sequence[int] | None = None) -> None:
        self.call("session_free", _ints(slots), 0 if slots is None else len(slots))

    def length(self, slot: int) -> int:
        out = c_int64()
        self.call("session_length", slot, byref(out))
        return out.value

    def _logits(self, name: str, arguments: tuple[Any, ...]) -> NDArray[np.float32]:
        logits = np.full((arguments[1], self.vocab_size), np.nan, np.float32)
        self.call(f"session_{name}", *arguments, logits.ctypes.data_as(FLOATS))
        return logits

    def _tokens(self, name: str, arguments: tuple[Any, ...], draws: Sequence[Draw]) -> NDArray[np.int32]:
        out = np.full(arguments[1], -1, np.int32)
        array = (CDraw * len(draws))(*(CDraw(CSampling.of(d.sampling), d.uniform) for d in draws))
        self.call(f"session_{name}", *arguments, array, out.ctypes.data_as(INTS))
        return out


class Scheduler(_Owner):
    kind = "scheduler"

    def __init__(self, library: Library, handle: Handle) -> None:
        super().__init__(library, handle)
        self._callbacks: list[Any] = []

    def submit(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop_tokens: Iterable[int] = (),
        stream: int = 0,
        on_token: OnToken | None = None,
    ) -> int:
        stop, out = list(stop_tokens), c_uint64()
        chosen = CSampling.of(sampling or Sampling())
        request = CRequest(_ints(prompt), len(prompt), max_new_tokens, chosen, stream, _ints(stop), len(stop))
        callback = _on_token(on_token) if on_token else ON_TOKEN()
        self._callbacks.append(callback)  # alive as long as it may be called
        self.call("scheduler_submit", byref(request), callback, None, byref(out))
        return out.value

    def cancel(self, request: int) -> None:
        self.call("scheduler_cancel", request)

    def drain(self) -> None:
        self.call("scheduler_drain")

    @property
    def stats(self) -> CStats:
        out = CStats()
        self.call("scheduler_stats_get", byref(out))
        return out


def _on_token(seen: OnToken) -> Any:
    def called(token: Any, _: int | None) -> int:
        t = token.contents
        return int(bool(seen((t.request, t.token, FINISH[t.finish], t.code))))

    return ON_TOKEN(called)


def _ints(values: ArrayLike | None) -> Any:
    """An int32 array for C, which keeps it alive; None is NULL."""
    if values is None:
        return None
    flat = np.asarray(values, np.int64).reshape(-1)
    return ctypes.cast((c_int32 * len(flat))(*flat.tolist()), INTS)


def _batch(tokens: ArrayLike, lengths: ArrayLike, slots: ArrayLike | None) -> tuple[Any, ...]:
    ids = np.asarray(tokens)
    return _ints(ids), ids.shape[0], ids.shape[1], _ints(lengths), _ints(slots)


def _column(tokens: ArrayLike, slots: ArrayLike | None) -> tuple[Any, ...]:
    return _ints(tokens), len(np.asarray(tokens)), _ints(slots)
