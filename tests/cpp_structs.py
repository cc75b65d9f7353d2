"""include/dsv2/dsv2.h for ctypes: its structures, and the arguments of its functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from typing import Any, Self

from dsv2_compile.runtime.sampling import Sampling


class Handle(ctypes.Structure):
    """dsv2_engine, dsv2_session or dsv2_scheduler."""

    _fields_ = (("id", c_uint64),)


class CError(ctypes.Structure):
    _fields_ = (("code", c_int32), ("cause", c_char * 1024), ("remedy", c_char * 512), ("problems", c_char * 4096))


class CLoadOptions(ctypes.Structure):
    _fields_ = (("threads", c_int32), ("cache_tokens", c_int64), ("onnxruntime", c_char_p))


class CEngineInfo(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("vocab_size", "layers", "cache_dim", "max_batch_size", "max_seq_len")),
        *((name, c_int64) for name in ("page_size", "page_count", "pages_free", "bos_token")),
        ("eos_tokens", c_int64 * 256),
        ("eos_count", c_int64),
        ("verified", c_int32),
        ("backend", c_char * 64),
        ("target", c_char * 64),
    )


class CSampling(ctypes.Structure):
    _fields_ = (("temperature", c_double), ("top_k", c_int64), ("top_p", c_double), ("seed", c_uint64))

    @classmethod
    def of(cls, sampling: Sampling) -> Self:
        return cls(sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed)


class CDraw(ctypes.Structure):
    _fields_ = (("sampling", CSampling), ("uniform", c_double))


class CToken(ctypes.Structure):
    _fields_ = (
        ("request", c_uint64),
        ("token", c_int32),
        ("finish", c_int32),
        ("code", c_int32),
        ("cause", c_char_p),
    )


class CSchedulerOptions(ctypes.Structure):
    _fields_ = tuple((name, c_int64) for name in ("max_batch", "max_tokens", "chunk_tokens", "max_waiting"))


class CRequest(ctypes.Structure):
    _fields_ = (
        ("prompt", POINTER(c_int32)),
        ("prompt_length", c_int64),
        ("max_new_tokens", c_int64),
        ("sampling", CSampling),
        ("stream", c_uint64),
        ("stop_tokens", POINTER(c_int32)),
        ("stop_count", c_int64),
    )


class CStats(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("waiting", "live", "max_batch", "pages_committed", "page_count")),
        *((name, c_uint64) for name in ("submitted", "finished", "cancelled", "failed")),
        *((name, c_uint64) for name in ("prompt_tokens", "new_tokens", "steps")),
    )


ON_TOKEN = ctypes.CFUNCTYPE(c_int32, POINTER(CToken), c_void_p)

INTS, FLOATS, DRAWS = POINTER(c_int32), POINTER(c_float), POINTER(CDraw)
_BATCH = (INTS, c_int64, c_int64, INTS, INTS)  # tokens, rows, columns, lengths, slots
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "engine_load": (c_char_p, POINTER(CLoadOptions), POINTER(Handle)),
    "engine_info_get": (Handle, POINTER(CEngineInfo)),
    "engine_close": (Handle,),
    "session_open": (Handle, c_int64, c_int64, POINTER(Handle)),
    "session_prefill": (Handle, *_BATCH, FLOATS),
    "session_extend": (Handle, *_BATCH, FLOATS),
    "session_decode": (Handle, INTS, c_int64, INTS, FLOATS),
    "session_start": (Handle, *_BATCH, DRAWS, INTS),
    "session_resume": (Handle, *_BATCH, DRAWS, INTS),
    "session_step": (Handle, INTS, c_int64, INTS, DRAWS, INTS),
    "session_restore": (Handle, FLOATS, c_int64, c_int64, INTS, INTS),
    "session_free": (Handle, INTS, c_int64),
    "session_length": (Handle, c_int32, POINTER(c_int64)),
    "session_close": (Handle,),
    "uniforms": (c_uint64, c_uint64, c_int64, POINTER(c_double)),
    "generate": (Handle, INTS, POINTER(c_int64), c_int64, c_int64, POINTER(CSampling), ON_TOKEN, c_void_p),
    "scheduler_open": (Handle, POINTER(CSchedulerOptions), POINTER(Handle)),
    "scheduler_submit": (Handle, POINTER(CRequest), ON_TOKEN, c_void_p, POINTER(c_uint64)),
    "scheduler_cancel": (Handle, c_uint64),
    "scheduler_drain": (Handle,),
    "scheduler_stats_get": (Handle, POINTER(CStats)),
    "scheduler_close": (Handle,),
}
"""By the name after dsv2_; each takes a dsv2_error last."""
