"""What ONNX Runtime's CPU kernels reach on fp32 DeepSeek-V2-Lite sizes: writes artifacts/bench/ort_micro.json.

    python -m tests.slow.bench_ort_micro [--out FILE] [--scratch DIR]

Every case runs in its own process with two threads. Each linear is repeated with distinct weights until
they exceed the last-level cache several times; weights are external data, as in an engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

THREADS = 2
ROOT = Path(__file__).parents[2]
LINEARS = {
    "q": (3072, 2048),
    "kv_a": (576, 2048),
    "o": (2048, 2048),
    "gate_up": (5632, 2048),
    "lm_head": (102400, 2048),
}
"""name -> (out, in)."""
FORMS = ("matmul_kn", "gemm_transb", "fused_matmul_transb")
TOKENS = (1, 64, 512)
EXPERTS, WIDTH, HIDDEN, TOP_K = 64, 1408, 2048, 6
WORKING_SET = 400 << 20


def memory() -> dict[str, float]:
    """Resident memory of this process in MB: anonymous, and mapped from files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {k: int(status[k].split()[0]) / 1024 for k in ("RssAnon", "RssFile")}


def external(name: str, shape: tuple[int, ...], file: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    entries = {"location": file, "offset": offset, "length": int(np.prod(shape)) * 4}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def linear_node(form: str, index: int) -> onnx.NodeProto:
    x, w, y = "x", f"w{index}", f"y{index}"
    if form == "matmul_kn":
        return helper.make_node("MatMul", [x, w], [y])
    if form == "gemm_transb":
        return helper.make_node("Gemm", [x, w], [y], transB=1)
    return helper.make_node("FusedMatMul", [x, w], [y], domain="com.microsoft", transB=1)


def linear_model(form: str, shape: tuple[int, int], folder: Path) -> tuple[Path, int]:
    """A model of independent linears sharing one input; returns its path and the bytes of weights read."""
    size = shape[0] * shape[1] * 4
    copies = max(1, WORKING_SET // size)
    with open(folder / "w.bin", "wb") as f:
        for i in range(copies):  # distinct: ONNX Runtime shares equal prepacked weights
            f.write(np.random.default_rng(i).standard_normal(size // 4, dtype=np.float32).tobytes())
    dims = shape[::-1] if form == "matmul_kn" else shape
    names = range(copies)
    graph = helper.make_graph(
        [linear_node(form, i) for i in names],
        "linears",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", shape[1]])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", shape[0]]) for i in names],
        [external(f"w{i}", dims, "w.bin", i * size) for i in names],
    )
    return save(graph, folder), copies * size


def moe_model(folder: Path) -> tuple[Path, int]:
    sizes = {"up": (EXPERTS, 2 * WIDTH, HIDDEN), "down": (EXPERTS, HIDDEN, WIDTH)}
    offset, initializers = 0, []
    with open(folder / "w.bin", "wb") as f:
        for name, shape in sizes.items():
            initializers.append(external(name, shape, "w.bin", offset))
            for _ in range(EXPERTS):
                f.write(np.random.default_rng(0).standard_normal(int(np.prod(shape[1:])), dtype=np.float32).tobytes())
            offset += int(np.prod(shape)) * 4
    node = helper.make_node(
        "MoE", ["x", "router", "up", "", "down"], ["y"], domain="com.microsoft",
        k=TOP_K, activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "moe",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["M", d])
            for n, d in (("x", HIDDEN), ("router", EXPERTS))
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", HIDDEN])],
        initializers,
    )
    return save(graph, folder), offset * TOP_K // EXPERTS


def save(graph: onnx.GraphProto, folder: Path) -> Path:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


def session(path: Path, options: dict[str, str]) -> ort.InferenceSession:
    so = ort.SessionOptions()
    so.intra_op_num_threads = THREADS
    for key, value in options.items():
        so.add_session_config_entry(key, value)
    return ort.InferenceSession(path, so, ["CPUExecutionProvider"])


def timed(fn: Callable[[], Any], seconds: float = 3.0, most: int = 30) -> float:
    """Median seconds of one call after a warm-up."""
    fn()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < most):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One case in this process."""
    if case["kind"] == "bandwidth":
        return {"read_gbps": read_bandwidth()}
    moe = case["kind"] == "moe"
    path, read = moe_model(folder) if moe else linear_model(case["form"], LINEARS[case["shape"]], folder)
    before, start = memory(), time.perf_counter()
    s = session(path, {"session.disable_prepacking": "1"} if case["disable_prepacking"] else {})
    out: dict[str, Any] = {"load_s": time.perf_counter() - start}
    rng = np.random.default_rng(1)
    for tokens in TOKENS:
        feeds = {"x": rng.standard_normal((tokens, HIDDEN), dtype=np.float32)}
        if moe:
            router = rng.standard_normal((64, tokens, EXPERTS), dtype=np.float32)
            step = iter(range(1 << 30))
            seconds = timed(lambda f=feeds, r=router, i=step: s.run(None, {**f, "router": r[next(i) % 64]}))
            flops = 6.0 * tokens * TOP_K * WIDTH * HIDDEN
        else:
            seconds = timed(lambda f=feeds: s.run(None, f))
            flops = 2.0 * tokens * read / 4
        out[f"M{tokens}"] = {"ms": seconds * 1e3, "gflops": flops / seconds / 1e9}
        if tokens == 1:
            out["M1"]["gbps"] = read / seconds / 1e9
            out["M1"]["rss_mb"] = {k: v - before[k] for k, v in memory().items()}
    return out


def read_bandwidth() -> float:
    """GB/s of the fastest of two plain reads of 1 GiB: a sum and a matrix-vector product."""
    import torch

    torch.set_num_threads(THREADS)
    x, v = torch.randn(1 << 14, 1 << 14), torch.randn(1 << 14)
    return x.nbytes / min(timed(x.sum), timed(lambda: x @ v)) / 1e9


def cases() -> list[dict[str, Any]]:
    forms = [{"kind": "linear", "form": f, "shape": s} for s in LINEARS for f in FORMS]
    grid = [{**c, "disable_prepacking": off} for c in [*forms, {"kind": "moe"}] for off in (False, True)]
    return [{"kind": "bandwidth"}, *grid, {"kind": "bandwidth"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts/bench/ort_micro.json")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        if args.case:
            print(json.dumps(measure(json.loads(args.case), Path(folder))))
            return
        results = []
        for case in cases():
            command = [sys.executable, "-m", "tests.slow.bench_ort_micro", "--case", json.dumps(case)]
            command += ["--scratch", folder]
            run = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            results.append({**case, **json.loads(run.stdout)})
            print(json.dumps(results[-1]), file=sys.stderr)
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    head = {
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**head, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
