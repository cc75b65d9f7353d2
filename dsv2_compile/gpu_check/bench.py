"""Part c: kernels at the shapes of the published models, cold caches, graph replays, beside torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import dsv2_compile.kernels.gpu.all  # noqa: F401  registers the kernels
from dsv2_compile.backends.cuda.compile import request
from dsv2_compile.backends.cuda.draft import Request
from dsv2_compile.config import ModelConfig
from dsv2_compile.devices.device import Device, open_device
from dsv2_compile.gpu_check import bench_attention, bench_layers, scale
from dsv2_compile.gpu_check.options import Options, Row
from dsv2_compile.gpu_check.scale import Scale, Step
from dsv2_compile.kernels.gpu.kernel import Kernel
from dsv2_compile.targets import Target, target


@dataclass(frozen=True)
class Kind:
    steps: Callable[[ModelConfig, Row, Target], list[Step]]
    measure: Callable[[Device, dict[str, Any], Scale, Row], Row]


KINDS = {
    "decode": Kind(bench_attention.decode_steps, bench_attention.decode),
    "prefill": Kind(bench_attention.prefill_steps, bench_attention.prefill),
    "linear": Kind(bench_layers.linear_steps, bench_layers.linear),
    "experts": Kind(bench_layers.expert_steps, bench_layers.experts),
}


@dataclass(frozen=True)
class State:
    device: Device
    options: Options


def items(options: Options) -> list[Row]:
    found = list(scale.items(scale.scale(options)))
    return [{"id": " ".join(str(v) for v in item.values()), **item} for item in found]


def requests(options: Options, rows: Iterable[Row]) -> Iterator[tuple[Request, Kernel]]:
    """What has to be compiled for ``rows``."""
    models, gpu = scale.scale(options).models, target(options.target)
    for row in rows:
        for step in KINDS[row["kind"]].steps(models[row["model"]], row, gpu):
            yield request(step.kernel, step.dims, step.config, "bf16"), step.kernel


def start(options: Options) -> State:
    return State(open_device(target(options.target), options.host), options)


def sound(state: State) -> None:
    state.device.fence()


def run(state: State, item: Row) -> Row:
    measure = KINDS[item["kind"]].measure
    return measure(state.device, state.options.machine, scale.scale(state.options), item)


def summary(rows: list[Row]) -> dict[str, Any]:
    """By kind and model: the least, median and largest share of the bound, and of torch's time over ours."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for model in dict.fromkeys(r["model"] for r in rows):
            mine = [r for r in rows if (r["kind"], r["model"]) == (kind, model)]
            for what in ("share", "torch_over_ours"):
                values = sorted(r[what] for r in mine if what in r)
                if values:
                    middle = values[len(values) // 2]
                    found[f"{kind}, {model}, {what}"] = {"least": values[0], "median": middle, "most": values[-1]}
    return found
