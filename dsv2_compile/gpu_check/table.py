"""The report as people read it: one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsv2_compile.cli.format import table
from dsv2_compile.gpu_check.options import ERROR, OK, REFUSED, SKIPPED, WRONG, Row

_MOST_REASON = 160
_MOST_ROWS = 200
"""Of a part."""


def text(report: Row) -> str:
    m = report["machine"]
    where = "the host, a dry run: no figure is of a GPU" if report["host"] else m.get("gpu", "no GPU")
    lines = [f"{where}; {', '.join(f'{k} {v}' for k, v in report['versions'].items())}"]
    if "copy_gbps" in m:
        lines.append(f"copy {m['copy_gbps']} GB/s, bf16 matmul {m['matmul_tflops']} TFLOP/s, clocks {m['clocks']}")
    rows = [row for letter, part in report["parts"].items() for row in _part(letter, part)]
    if rows:
        lines += ["", table(["part", "what", "result", "ms", "of bound", "torch/ours"], rows, right=(3, 4, 5))]
    return "\n".join([*lines, "", f"{report['verdict']} ({report['seconds']} s, exit {report['exit']})"])


def _part(letter: str, part: Row) -> Iterator[list[str]]:
    """Rows of a part that checks many things: a summary by kernel, and all that is not in order."""
    if letter == "a":
        for kernel, found in part["summary"].items():
            worst = f"{found['worst']:.2f} of the limit"
            yield ["a", kernel, f"{_counts(found)}, at most {worst}", "", "", ""]
    quiet = (OK, REFUSED, SKIPPED) if letter == "a" else (SKIPPED,)
    told = [r for r in part["rows"] if r["status"] not in quiet]
    for r in told[:_MOST_ROWS]:
        yield [letter, r["id"], _result(r), *_figures(r)]
    if len(told) > _MOST_ROWS:
        yield [letter, f"and {len(told) - _MOST_ROWS} more", "", "", "", ""]
    yield [letter, part["title"], f"{_counts(part['counts'])}, {part['seconds']} s", "", "", ""]


def _counts(found: dict[str, Any]) -> str:
    return ", ".join(f"{found[s]} {s}" for s in (OK, WRONG, ERROR, REFUSED, SKIPPED) if found.get(s)) or "nothing"


def _result(r: Row) -> str:
    if r["status"] != OK:
        return f"{r['status'].upper()} {r.get('reason', '')}"[:_MOST_REASON]
    if "tokens_per_second" in r:
        return f"{r['tokens_per_second']} tokens/s"
    if "gbps" in r:
        return f"{r['gbps']} GB/s, {r['tflops']} TFLOP/s"
    return str(r.get("executed", OK))


def _figures(r: Row) -> list[str]:
    ms, share, ratio = r.get("ms"), r.get("share"), r.get("torch_over_ours")
    return [
        f"{ms['median']:.4f}" if isinstance(ms, dict) else "",
        f"{100 * share:.0f} %" if share is not None else "",
        f"{ratio:.2f}" if ratio is not None else "",
    ]
