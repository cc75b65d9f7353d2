"""How the GPU is doing, by the library that comes with its driver. Nothing without it."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_SM_CLOCK, _MEMORY_CLOCK, _CORE = 1, 2, 0
_MOST = 64


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute", ctypes.c_uint),
    ]


class Nvml:
    """The first GPU that this process sees."""

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        try:
            self._library: Any = ctypes.CDLL("libnvidia-ml.so.1")
            ok = not self._library.nvmlInit_v2() and not self._find()
        except (OSError, AttributeError):
            ok = False
        if not ok:
            self._library = None

    def _find(self) -> int:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        handle = ctypes.byref(self._handle)
        if first.startswith("GPU-"):
            return int(self._library.nvmlDeviceGetHandleByUUID(first.encode(), handle))
        return int(self._library.nvmlDeviceGetHandleByIndex_v2(int(first) if first.isdecimal() else 0, handle))

    def facts(self) -> dict[str, Any]:
        """Clocks in MHz, power in W, temperature in degrees Celsius, and how many processes compute on it beside this
        one. What the library does not tell is left out."""
        if self._library is None:
            return {}
        readings = {
            "sm_clock": ("nvmlDeviceGetClockInfo", (_SM_CLOCK,), 1),
            "memory_clock": ("nvmlDeviceGetClockInfo", (_MEMORY_CLOCK,), 1),
            "power": ("nvmlDeviceGetPowerUsage", (), 1000),
            "temperature": ("nvmlDeviceGetTemperature", (_CORE,), 1),
        }
        found: dict[str, Any] = {}
        for name, (function, args, unit) in readings.items():
            value = ctypes.c_uint()
            if not getattr(self._library, function)(self._handle, *args, ctypes.byref(value)):
                found[name] = value.value // unit
        count, processes = ctypes.c_uint(_MOST), (_Process * _MOST)()
        if not self._library.nvmlDeviceGetComputeRunningProcesses_v3(self._handle, ctypes.byref(count), processes):
            found["others"] = max(count.value - 1, 0)
        return found
