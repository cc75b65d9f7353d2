"""What ``inspect`` prints, from the same data as its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsv2_compile.cli.format import printable, scaled, size, table


def text(data: Mapping[str, Any], only_ops: bool) -> str:
    """``data`` of the JSON object; ``only_ops``: of the programs show the operators alone."""
    parts = [_summary(data)] if "model" in data else []
    if "programs" in data:
        parts += [] if only_ops else [_programs(data["programs"])]
        parts += [_operators(phase, p, only_ops) for phase, p in data["programs"].items() if p["operators"]]
    if "passes" in data:
        parts.append(_passes(data["passes"]))
    if data.get("numerics"):
        parts.append(table(["numerics", ""], ([k, v] for k, v in _flat(data["numerics"], ""))))
    parts.append("sizes of the files were checked, their hashes were not: dsv2-compile verify does that")
    return "\n\n".join(parts)


def _summary(d: Mapping[str, Any]) -> str:
    m, w, source = d["model"], d["weights"], d["source"]
    experts = "no experts"
    if m["n_routed_experts"]:
        experts = (
            f"{m['n_routed_experts']} experts, {m['num_experts_per_tok']} per token, {m['n_shared_experts']} shared"
        )
    rows = [
        ["engine", f"{d['engine']} ({d['engine_status']})"],
        [
            "model",
            f"{m['num_hidden_layers']} layers of {m['hidden_size']}, {m['num_attention_heads']} heads, {experts}",
        ],
        ["source", " ".join(filter(None, [source["name"], source["revision"]]))],
        ["runs on", f"{d['target']}, backend {d['backend']}, {d['dtype']}"],
        ["limits", f"{d['max_batch_size']} sequences of {d['max_seq_len']} positions"],
        ["built with", ", ".join(f"{k} {v}" for k, v in sorted(d["toolchain"].items()))],
        ["weights", f"{w['tensors']} tensors, {size(w['bytes'])} in {w['files']} files"],
        ["directory", f"{d['files']['count']} files, {size(d['files']['bytes'])}"],
    ]
    kv = d["kv_cache"]
    for key, name in (("engine", d["dtype"]), ("at_16_bit", "at 16 bit"), ("at_6_bit", "at 6 bit")):
        share, large = kv[key]["of_deepseek_67b"], kv["deepseek_67b_bytes_per_token"]
        told = f"{kv[key]['bytes_per_token']:,.0f} bytes per token {name}: {share:.2%} of the {large:,} of DeepSeek 67B"
        rows.append(["KV cache" if key == "engine" else "", told])
    rows.append(["", f"{kv['layers']} layers x {kv['values_per_layer']} values"])
    return "\n".join(f"{label:<12}{printable(told)}" for label, told in rows)


def _programs(programs: Mapping[str, Any]) -> str:
    rows, reasons = [], []
    for phase, p in programs.items():
        sizes = ", ".join(f"{k} {v}" for k, v in p["sizes"].items()) if p["sizes"] else "not costed"
        cost = ["", ""] if p["bytes"] is None else [size(p["bytes"]), scaled(p["flops"], "FLOP")]
        rows.append([phase, p["file"], p["mla_form"], *cost, sizes])
        if p["mla_reason"]:
            reasons.append(f"  MLA in {phase}: {printable(p['mla_reason'])}")
    header = ["program", "file", "MLA form", "bytes moved", "work", "at sizes"]
    return "\n".join([table(header, _safe(rows), right=(3, 4)), *reasons])


def _operators(phase: str, p: Mapping[str, Any], every: bool) -> str:
    """Without ``every`` those are left out that move nothing: views."""
    shown = [o for o in p["operators"] if every or o["bytes"]]
    rows = [[o["op"], str(o["calls"]), size(o["bytes"]), scaled(o["flops"], "FLOP")] for o in shown]
    return table([f"operators of {phase}", "calls", "bytes moved", "work"], _safe(rows), right=(1, 2, 3))


def _passes(passes: list[dict[str, Any]]) -> str:
    rows = []
    for p in passes:
        expected = "" if p.get("expected") is None else f" of {p['expected']}"
        error = p.get("error")
        rows.append(
            [
                str(p.get("name", "?")),
                str(p.get("phase", "")),
                f"{p.get('matches', '?')}{expected}" + (", skipped" if p.get("skipped") else ""),
                str(p.get("claim", "")),
                f"{error:.1e}" if isinstance(error, float | int) else "not checked",
                f"{p.get('nodes_before', '?')} -> {p.get('nodes_after', '?')}",
            ]
        )
    return table(["pass", "phase", "matches", "claim", "fp64 error", "nodes"], _safe(rows), right=(2,))


def _safe(rows: list[list[str]]) -> list[list[str]]:
    return [[printable(cell)[:120] for cell in row] for row in rows]


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        yield printable(path)[:60], printable(shown)[:120]
