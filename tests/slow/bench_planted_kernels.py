"""Wrong kernels under the check that a tuned configuration has to pass: how many are accepted. None may be.

    python -m tests.slow.bench_planted_kernels [--out FILE] [--most N] [--kernels NAME ...]

Kernels run on the host by the interpreter, at small shapes; nothing is compiled, nothing is run on a GPU. Every
configuration that a wrong kernel is planted under is also checked with the right kernel, which must be accepted.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from dsv2_compile.kernels.gpu.kernel import KERNELS
from tests.planted_kernels import ACCEPTED, ADDRESS, H800, LITTLE, NUMBERS, ORDER, RAISED, judged, plants, verdict
from tests.slow.figures import ROOT, arguments, note, save

REFUSED = {
    NUMBERS: "by the numbers",
    ADDRESS: "for an address outside of its tensors",
    ORDER: "for results that depend on the order of programs, or inputs that changed",
    RAISED: "for an error",
}


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    by = Counter(r["verdict"] for r in rows)
    return {
        "planted": len(rows),
        **{f"refused {text}": by[how] for how, text in REFUSED.items()},
        "of these right at the call itself, refused on a held-out one": sum(r["case"] > 0 for r in rows),
        "selected": by[ACCEPTED],
    }


def main() -> None:
    parser = arguments("planted", __doc__)
    parser.set_defaults(out=ROOT / "artifacts/tuning/planted.json")
    parser.add_argument("--most", type=int, default=2, help="configurations and shapes of an edit of a kernel")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS))
    args = parser.parse_args()
    start, rows = time.process_time(), []
    chosen = [p for p in plants(args.most) if p.call.kernel in args.kernels]
    under = list(dict.fromkeys((p.call, p.config) for p in chosen))
    for call, config in under:
        how, number, why = verdict(KERNELS[call.kernel], call, dict(config))
        if how != ACCEPTED:
            raise SystemExit(f"the right {call.kernel} with {dict(config)} is refused, case {number}: {how}, {why}")
    note(f"{len(under)} configurations of right kernels accepted in {time.process_time() - start:.0f} s")
    for plant in chosen:
        how, number, why = judged(plant)
        rows.append({"plant": plant.name, "kind": plant.edit.kind, "kernel": plant.call.kernel})
        rows[-1] |= {"verdict": how, "case": number if how != ACCEPTED else 0}
        if how in (ACCEPTED, RAISED):
            note(json.dumps({**rows[-1], "why": why}))
    groups = {by: {v: counts([r for r in rows if r[by] == v]) for v in _values(rows, by)} for by in ("kind", "kernel")}
    save(
        args.out,
        where="the host, by the interpreter",
        dtype="bf16",
        target_of_defaults=H800.name,
        flops_of_a_held_out_case=LITTLE,
        right={"configurations": len(under), "accepted": len(under)},
        all=counts(rows),
        **{f"by_{by}": group for by, group in groups.items()},
        processor_seconds=round(time.process_time() - start, 1),
        plants=[f"{r['plant']}: {r['verdict']}, case {r['case']}" for r in rows],
    )
    if bad := [r["plant"] for r in rows if r["verdict"] in (ACCEPTED, RAISED)]:
        raise SystemExit("\n".join(["selected, or wrong in another way than was planted:", *bad]))


def _values(rows: list[dict[str, Any]], by: str) -> list[str]:
    return sorted({r[by] for r in rows})


if __name__ == "__main__":
    main()
