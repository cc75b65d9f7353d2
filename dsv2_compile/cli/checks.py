"""The checks of ``doctor``. Packages and the GPU driver are tried in processes of their own: a crash is a finding."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv2_compile.cli.format import size

TIMEOUT = 60
"""Seconds an import or the driver may take."""


@dataclass(frozen=True)
class Check:
    """``state``: ok, warn (something will not work or be slow) or fail. ``remedy`` is empty if all is well."""

    name: str
    state: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Package:
    """A distribution and its module; versions from ``low`` to below ``high``. ``needed``: what for."""

    module: str
    low: str
    high: str
    needed: str


REQUIRED = {
    "huggingface-hub": Package("huggingface_hub", "1.0", "3", "models from the hub"),
    "ml-dtypes": Package("ml_dtypes", "0.4", "", "build for a GPU"),
    "numpy": Package("numpy", "1.26", "", "everything"),
    "onnx": Package("onnx", "1.19", "2", "build"),
    "onnxruntime": Package("onnxruntime", "1.32", "2", "run, verify, build"),
    "optuna": Package("optuna", "4.4", "6", "tune"),
    "safetensors": Package("safetensors", "0.6", "1", "build, verify"),
    "sympy": Package("sympy", "1.13", "", "build"),
    "tokenizers": Package("tokenizers", "0.21", "1", "run with text"),
    "torch": Package("torch", "2.11", "2.14", "build"),
    "triton": Package("triton", "3.6", "3.9", "build for a GPU"),
}
OPTIONAL = {
    "matplotlib": Package("matplotlib", "3.8", "", "verify --report FILE.png"),
    "cuda-core": Package("cuda.core", "1.2", "2", "running GPU engines"),
    "cuda-bindings": Package("cuda.bindings", "12.9", "14", "running GPU engines"),
    "jinja2": Package("jinja2", "3.1", "4", "serve"),
    "starlette": Package("starlette", "1", "2", "serve"),
    "uvicorn": Package("uvicorn", "0.40", "1", "serve"),
    "tensorrt": Package("tensorrt", "11.4", "12", "TensorRT backend, not part of this version"),
}
PYTHON = (3, 11)


def run_all() -> list[Check]:
    """Every check, in the order they are told. Takes as long as importing torch."""
    trials = {name: _start(f"import {p.module}") for name, p in REQUIRED.items() if _version(name)}
    gpu = _start(_DRIVER)
    return [
        _python(),
        *(_required(name, p, trials.get(name)) for name, p in REQUIRED.items()),
        *(_optional(name, p) for name, p in OPTIONAL.items()),
        processor(),
        memory(),
        disk(Path.cwd()),
        cache(os.environ),
        _gpu(gpu),
    ]


def _python() -> Check:
    state = "ok" if sys.version_info[:2] >= PYTHON else "fail"
    remedy = "" if state == "ok" else f"Use Python {PYTHON[0]}.{PYTHON[1]} or later."
    return Check("python", state, f"{platform.python_version()} on {platform.system()} {platform.machine()}", remedy)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _parts(version: str) -> tuple[int, ...]:
    """Leading numbers: 2.13.0+cpu -> (2, 13, 0); 3.9.0rc1 -> (3, 9)."""
    out = []
    for word in version.split("+")[0].split("."):
        if not word.isdecimal():
            break
        out.append(int(word))
    return tuple(out)


def in_range(version: str, low: str, high: str) -> bool:
    return _parts(version) >= _parts(low) and (not high or _parts(version) < _parts(high))


def _wanted(name: str, p: Package) -> str:
    return f"{name}>={p.low}" + (f",<{p.high}" if p.high else "")


def _required(name: str, p: Package, trial: subprocess.Popen[str] | None) -> Check:
    version, install = _version(name), f"pip install '{_wanted(name, p)}'"
    if trial is None:
        return Check(name, "fail", f"not installed, needed to {p.needed}", install)
    problem = _outcome(trial)[1]
    if problem:
        return Check(name, "fail", f"{version} does not import: {problem}", f"Install it again: {install}")
    if not in_range(version, p.low, p.high):
        return Check(name, "fail", f"{version} is outside {_wanted(name, p)}", install)
    return Check(name, "ok", version)


def _optional(name: str, p: Package) -> Check:
    version = _version(name)
    if not version:
        return Check(name, "ok", f"not installed; only for {p.needed}")
    if not in_range(version, p.low, p.high):
        return Check(
            name,
            "warn",
            f"{version} is outside {_wanted(name, p)}",
            f"For {p.needed}: pip install '{_wanted(name, p)}'",
        )
    return Check(name, "ok", version)


def _start(code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def _outcome(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Standard output, and how it failed or ""."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "", f"no answer in {TIMEOUT} s"
    if process.returncode < 0:
        return "", f"crashed with {signal.Signals(-process.returncode).name}"
    if process.returncode:
        return "", (err.strip().splitlines() or ["unknown error"])[-1][:200]
    return out.strip(), ""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    cores = len(os.sched_getaffinity(0))
    flags: set[str] = set()
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags |= set(line.split(":", 1)[1].split())
    except OSError:
        pass
    known = [f for f in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_bf16", "asimd", "sve") if f in flags]
    found = f"{cores} cores, {' '.join(known) or 'features unknown'}"
    if flags and not {"avx2", "asimd"} & flags:
        return Check("processor", "warn", found, "Engines will be slow: use a processor with AVX2 or NEON.")
    return Check("processor", "ok", found)


LEAST_MEMORY = 4 << 30
LEAST_DISK = 5 << 30


def memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> Check:
    """What is free now, and the limit of the container if there is one."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free, total = (int(fields[k].split()[0]) << 10 for k in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return Check("memory", "warn", "unknown", "Use Linux with /proc mounted to have it told.")
    found = f"{size(free)} free of {size(total)}"
    try:
        limit = int(cgroup.read_text())
        found, free = f"{found}, container limit {size(limit)}", min(free, limit)
    except (OSError, ValueError):
        pass
    if free < LEAST_MEMORY:
        return Check(
            "memory", "warn", found, "Building needs about 1 GB beyond the largest weight: build --dry-run tells."
        )
    return Check("memory", "ok", found)


def disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} free in {folder}"
    if free < LEAST_DISK:
        return Check(
            "disk", "warn", found, "An engine is as large as its checkpoint in float32: choose another disk with -o."
        )
    return Check("disk", "ok", found)


def cache(environ: Mapping[str, str]) -> Check:
    """Where models from the hub are kept."""
    home = environ.get("HF_HOME") or str(
        Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/").joinpath(".cache"), "huggingface")
    )
    path = Path(environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Check("model cache", "ok", str(path))
    return Check(
        "model cache", "warn", f"{path} cannot be written", "Set HF_HOME to a directory that you may write to."
    )


_DRIVER = """
import ctypes
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    print("none")
    raise SystemExit
status = cuda.cuInit(0)
version, count, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(128)
cuda.cuDriverGetVersion(ctypes.byref(version))
if status == 0:
    cuda.cuDeviceGetCount(ctypes.byref(count))
names = []
for i in range(count.value):
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), i)
    cuda.cuDeviceGetName(name, 128, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    names.append(f"{name.value.decode(errors='replace')} (sm_{major.value}{minor.value})")
shown = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
print(f"driver for {shown}: {', '.join(names) or f'no device, cuInit gives {status}'}")
"""
"""75 and 76 are the attributes of the compute capability."""


def _gpu(driver: subprocess.Popen[str]) -> Check:
    found, problem = _outcome(driver)
    if problem:
        return Check(
            "GPU", "warn", f"the driver does not answer: {problem}", "Reinstall the NVIDIA driver to use the GPU."
        )
    if found == "none":
        return Check("GPU", "ok", "no NVIDIA driver; engines for CPUs need none")
    return Check("GPU", "ok", found)
