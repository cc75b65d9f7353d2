"""GPU builds on a machine with no GPU: time and memory, of plan and kernels and of whole engines.

    python -m tests.slow.bench_build_gpu [--out FILE] [--scratch DIR] [--gpu NAME] [--plans JSON ...]

Writes artifacts/bench/build_gpu.json. Plans: `build --no-weights` from a config.json alone, with an empty kernel
cache, then again with all kernels in it, then once more over the first, unchanged. Engines: `build` of a random
checkpoint. Each a process of its own; private memory is sampled, and leaves out the compiler's worker processes.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from dsv2_compile.checkpoint.presets import configure, published_config
from tests.slow.figures import answer, arguments, cli, note, save, settings

PLANS = ({"preset": "v2"}, {"preset": "v2", "layers": 27}, {"preset": "lite"})
ENGINES = ({"preset": "lite", "layers": 8},)
MOST_SECONDS, MOST_BYTES, MOST_AGAIN, MOST_RATIO = 300, 4e9, 10, 2.3
"""The aims for V2: a build, its memory, an unchanged rebuild; 60 layers against 27."""


def plan(case: dict[str, Any], gpu: str, folder: Path) -> dict[str, Any]:
    """Plan and kernels of a model, cold and again."""
    changes = {k: v for k, v in case.items() if k != "preset"}
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(published_config(configure(case["preset"], changes), "bfloat16")))
    os.environ["DSV2_CACHE_DIR"] = str(folder / "cache")
    out: dict[str, Any] = {"case": case}
    for name, where in (("cold", "engine"), ("kernels known", "other"), ("unchanged", "engine")):
        words = ["--force"] if name == "unchanged" else []
        done = cli("build", model, "--gpu", gpu, "-o", folder / where, "--no-weights", "--json", *words)
        report = answer(done)
        launches = json.loads((folder / where / "launches.json").read_text())
        out[name] = {
            "seconds": done.seconds,
            "peak_private_bytes": done.peak_private_bytes,
            "peak_rss_bytes": done.peak_rss_bytes,
            "status": report["engine_status"],
            "passed": report["numerics"]["passed"],
            "executed": report["numerics"]["executed"],
            "kernels": len(launches["kernels"]),
            "launches": {n: len(p["launches"]) for n, p in launches["programs"].items()},
            "bytes": report["bytes"],
        }
    out["kernels"] = launches["kernels"]
    return out


def engine(case: dict[str, Any], gpu: str, folder: Path) -> dict[str, Any]:
    """A whole engine from a random checkpoint. The proof on the host is left out: it is another figure."""
    changes = {k: v for k, v in case.items() if k != "preset"}
    os.environ["DSV2_CACHE_DIR"] = str(folder / "cache")
    cli("synth", case["preset"], "-o", folder / "checkpoint", *settings(changes), "--json")
    words = ("build", folder / "checkpoint", "--gpu", gpu, "-o", folder / "engine", "--no-verify", "--json")
    largest = answer(cli(*words, "--dry-run"))["plan"]["estimate"]["largest_weight_bytes"]
    done = cli(*words)
    limit = 2 * largest + 2e9
    return {
        "case": case,
        "seconds": done.seconds,
        "bytes": answer(done)["bytes"],
        "largest_weight_bytes": largest,
        "peak_private_bytes": done.peak_private_bytes,
        "peak_rss_bytes": done.peak_rss_bytes,
        "aim": {"peak_private_bytes": limit, "met": done.peak_private_bytes <= limit},
    }


def main() -> None:
    parser = arguments("build_gpu", __doc__)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--gpu", default="h800")
    parser.add_argument("--plans", type=json.loads, nargs="*", default=PLANS, help='as {"preset": "v2", "layers": 27}')
    parser.add_argument("--engines", type=json.loads, nargs="*", default=ENGINES)
    args = parser.parse_args()
    plans, engines = [], []
    for kind, cases, found in ((plan, args.plans, plans), (engine, args.engines, engines)):
        for case in cases:
            with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
                found.append(kind(case, args.gpu, Path(folder)))
            note(f"{kind.__name__} {case} done")
    save(args.out, gpu=args.gpu, plans=plans, engines=engines, aims=_aims(plans))


def _aims(plans: list[dict[str, Any]]) -> dict[str, Any]:
    v2 = {p["case"].get("layers", 60): p for p in plans if p["case"]["preset"] == "v2"}
    if 60 not in v2:
        return {}
    cold, again = v2[60]["cold"], v2[60]["unchanged"]
    found = {
        "seconds": [cold["seconds"], MOST_SECONDS],
        "peak_private_bytes": [cold["peak_private_bytes"], MOST_BYTES],
        "unchanged_seconds": [again["seconds"], MOST_AGAIN],
    }
    if 27 in v2:
        found["layers_60_over_27"] = [cold["seconds"] / v2[27]["cold"]["seconds"], MOST_RATIO]
    return {k: {"measured": a, "aim": b, "met": a <= b} for k, (a, b) in found.items()}


if __name__ == "__main__":
    main()
