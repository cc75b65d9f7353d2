"""Native plans as data: expressions, the file and its checks, the arena."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2_compile.backends.cuda.arena import Life, lay_out
from dsv2_compile.errors import IncompatibleError, IntegrityError
from dsv2_compile.plan import expr, text
from dsv2_compile.plan.check import problems
from dsv2_compile.plan.expr import cdiv, evaluate, minimum, symbol
from dsv2_compile.plan.plan import ALIGNMENT, SYMBOLS, Buffer, KernelEntry, Launch, Plan, PlanProgram, Pointer

ROWS, BATCH, SLOTS = symbol("rows"), symbol("batch"), symbol("slots")


@given(rows=st.integers(1, 10_000), batch=st.integers(1, 300), k=st.integers(1, 64))
def test_expressions_are_the_integers_they_say(rows, batch, k):
    e = minimum(cdiv(ROWS * 6, k) + BATCH, ROWS * 6) - minimum(BATCH, 3)
    value = min(-(-rows * 6 // k) + batch, rows * 6) - min(batch, 3)
    assert evaluate(e, {"rows": rows, "batch": batch}) == value
    again = expr.from_json(json.loads(json.dumps(expr.to_json(e))), SYMBOLS)
    assert again == e and evaluate(again, {"rows": rows, "batch": batch}) == value


def test_known_parts_are_computed_at_once():
    assert (cdiv(7, 2), ROWS * 1, 0 + ROWS, cdiv(ROWS, 1), ROWS - 0) == (4, ROWS, ROWS, ROWS, ROWS)
    assert str(cdiv(ROWS, 16) * 3) == "(cdiv(rows, 16) * 3)"


@pytest.mark.parametrize(
    "data",
    ["tokens", 1.5, True, None, ["/", 1, 2], ["max", 1, 2], ["+", 1], ["+", 1, 2, 3], {"+": 1}, ["cdiv", "rows", 0],
     ["cdiv", "rows", "batch"], 1 << 63, [["+"], 1, 2]],
)  # fmt: skip
def test_what_is_no_expression_is_refused(data):
    with pytest.raises(ValueError):
        expr.from_json(data, SYMBOLS)


def test_a_deep_expression_is_refused():
    data = "rows"
    for _ in range(expr.MAX_DEPTH + 2):
        data = ["+", data, 1]
    with pytest.raises(ValueError, match="deep"):
        expr.from_json(data, SYMBOLS)


def test_a_huge_value_is_refused():
    with pytest.raises(OverflowError):
        evaluate(ROWS * ROWS, {"rows": 1 << 40})


LIVES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 6)), max_size=30)


@given(LIVES)
def test_what_lives_at_once_never_overlaps(parts):
    lives = {str(i): Life(nbytes, first, first + span) for i, (nbytes, first, span) in enumerate(parts)}
    offsets, total = lay_out(lives)
    size = {n: -(-life.nbytes // ALIGNMENT) * ALIGNMENT for n, life in lives.items()}
    assert all(o % ALIGNMENT == 0 and o + size[n] <= total for n, o in offsets.items())
    for a, b in ((a, b) for a in lives for b in lives if a < b and lives[a].meets(lives[b])):
        assert offsets[a] + size[a] <= offsets[b] or offsets[b] + size[b] <= offsets[a]
    assert total <= sum(size.values())


def test_memory_is_used_again():
    offsets, total = lay_out({"a": Life(1000, 0, 1), "b": Life(1000, 1, 2), "c": Life(1000, 2, 3)})
    assert offsets["a"] == offsets["c"] != offsets["b"] and total == 2048


def plan() -> Plan:
    """Two launches: x = f(tokens, w), then logits = f(x)."""
    f = KernelEntry("f", "f.cubin", "f", ("*i32", "*bf16", "*bf16", "i32"), (True,) * 4, {"N": 8}, 4, 0, 0, 1)
    g = KernelEntry("g", "g.cubin", "g", ("*bf16", "*bf16", "*fp32"), (True,) * 3, {}, 4, 0, 0, 1)
    buffers = {
        "tokens": Buffer("i32", (ROWS,), "input"),
        "w": Buffer("bf16", (16, 8), "weight"),
        "x": Buffer("bf16", (ROWS, 8), "arena", 0),
        "y": Buffer("bf16", (ROWS, 8), "arena", 256),
        "cache": Buffer("bf16", (2, SLOTS, 4), "cache"),
        "logits": Buffer("fp32", (BATCH, 16), "output"),
        "next_tokens": Buffer("i32", (BATCH,), "output"),
    }
    one = (cdiv(ROWS, 2), 1, 1)
    launches = (
        Launch(0, one, (Pointer("tokens"), Pointer("w"), Pointer("x"), ROWS), "f"),
        Launch(0, one, (Pointer("tokens"), None, Pointer("cache", SLOTS * 8), ROWS), "f"),
        Launch(1, one, (Pointer("x"), Pointer("y", 16), Pointer("logits")), "g"),
    )
    limits = {"rows": 16, "batch": 4, "context": 64}
    return Plan(
        "h800", "sm_90", "bf16", 64, 2, (f, g), {"decode": PlanProgram("decode", limits, buffers, launches, 512)}
    )


def test_a_plan_comes_back_from_its_file():
    data = text.to_bytes(plan())
    assert text.parse(data) == plan() and text.to_bytes(text.parse(data)) == data
    assert list(problems(plan())) == []


def changed(**changes) -> Plan:
    p = plan().programs["decode"]
    return dataclasses.replace(plan(), programs={"decode": dataclasses.replace(p, **changes)})


def buffer(name: str, **changes) -> Plan:
    buffers = dict(plan().programs["decode"].buffers)
    buffers[name] = dataclasses.replace(buffers[name], **changes)
    return changed(buffers=buffers)


def launch(at: int, **changes) -> Plan:
    launches = list(plan().programs["decode"].launches)
    launches[at] = dataclasses.replace(launches[at], **changes)
    return changed(launches=tuple(launches))


def kernel(**changes) -> Plan:
    return dataclasses.replace(plan(), kernels=(dataclasses.replace(plan().kernels[0], **changes), plan().kernels[1]))


FIRST = plan().programs["decode"].launches[0].args[:3]
BROKEN = {
    "overlap": (buffer("y", offset=0), "overlap"),
    "unaligned buffer": (buffer("y", offset=8), "multiple of 256"),
    "beyond the arena": (buffer("y", offset=512), "beyond the arena"),
    "unknown place": (buffer("w", place="disk"), "unknown place"),
    "unknown dtype": (buffer("w", dtype="fp8"), "unknown place"),
    "tokens of another type": (buffer("next_tokens", dtype="fp32"), "outputs are not"),
    "tokens by row": (buffer("next_tokens", shape=(ROWS,)), "outputs are not"),
    "no tokens": (buffer("next_tokens", place="input"), "outputs are not"),
    "negative size": (buffer("w", shape=(BATCH - 2, 8)), "negative"),
    "unknown symbol": (buffer("w", shape=(symbol("heads"), 8)), "unknown symbol"),
    "no such kernel": (launch(0, kernel=2), "no kernel 2"),
    "an argument less": (launch(0, args=(Pointer("tokens"), Pointer("w"), Pointer("x"))), "takes 4"),
    "no such buffer": (launch(2, args=(Pointer("x"), Pointer("z"), Pointer("logits"))), "no buffer z"),
    "wrong dtype": (launch(2, args=(Pointer("x"), Pointer("logits"), Pointer("logits"))), "holds fp32"),
    "a number for a pointer": (launch(2, args=(Pointer("x"), 7, Pointer("logits"))), "7 for a"),
    "a pointer for a number": (launch(0, args=(*FIRST, Pointer("x"))), "takes i32"),
    "null for a number": (launch(0, args=(*FIRST, None)), "has no value"),
    "offset outside": (launch(2, args=(Pointer("x", 300), Pointer("y"), Pointer("logits"))), "outside"),
    "offset inside an element": (launch(2, args=(Pointer("x", 1), Pointer("y"), Pointer("logits"))), "outside"),
    "negative grid": (launch(0, grid=(BATCH - 2, 1, 1)), "grid axis 0"),
    "huge grid": (launch(0, grid=(1, ROWS * 5000, 1)), "grid axis 1"),
    "number beyond 32 bits": (launch(0, args=(*FIRST, ROWS * (1 << 28))), "i32"),
    "no limit": (changed(limits={"rows": 16, "batch": 4}), "limits"),
    "limit of 0": (changed(limits={"rows": 16, "batch": 0, "context": 1}), "limits"),
    "unknown phase": (changed(phase="train"), "unknown phase"),
    "unknown argument type": (kernel(args=("*i32", "*bf16", "*fp64", "i32")), "unknown argument type"),
    "alignment missing": (kernel(aligned=(True,)), "alignment"),
    "too many warps": (kernel(warps=64), "warps"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plan_is_found_and_never_written(name):
    broken, said = BROKEN[name]
    assert any(said in p for p in problems(broken)), list(problems(broken))
    with pytest.raises(AssertionError):
        text.to_bytes(broken)


def edited(edit) -> bytes:
    data = json.loads(text.to_bytes(plan()))
    edit(data)
    return json.dumps(data).encode()


MALFORMED = {
    "not JSON": b"{",
    "a list": b"[]",
    "another key": edited(lambda d: d.update(more=1)),
    "a key missing": edited(lambda d: d.pop("page")),
    "no schema of a plan": edited(lambda d: d.update(schema="plan")),
    "kernels an object": edited(lambda d: d.update(kernels={})),
    "argument types a string": edited(lambda d: d["kernels"][0].update(args="")),
    "arguments an object": edited(lambda d: d["programs"]["decode"]["launches"][0].__setitem__(2, {"rows": 1})),
    "grid an object": edited(
        lambda d: d["programs"]["decode"]["launches"][0].__setitem__(1, {"rows": 1, "batch": 1, "slots": 1})
    ),
    "page a string": edited(lambda d: d.update(page="64")),
    "page true": edited(lambda d: d.update(page=True)),
    "kernel key missing": edited(lambda d: d["kernels"][0].pop("warps")),
    "constant a list": edited(lambda d: d["kernels"][0]["constants"].update(N=[1])),
    "buffer twice": edited(lambda d: d["programs"]["decode"]["buffers"].append(d["programs"]["decode"]["buffers"][0])),
    "pointer to nothing": edited(lambda d: d["programs"]["decode"]["launches"][0][2].__setitem__(0, {"b": 99, "o": 0})),
    "pointer with more": edited(lambda d: d["programs"]["decode"]["launches"][0][2][0].update(x=0)),
    "launch too short": edited(lambda d: d["programs"]["decode"]["launches"][0].pop()),
    "grid of two": edited(lambda d: d["programs"]["decode"]["launches"][0][1].pop()),
    "overlap": edited(lambda d: d["programs"]["decode"]["buffers"][3].__setitem__(3, 0)),
    "division by zero": edited(lambda d: d["programs"]["decode"]["launches"][0][1].__setitem__(0, ["cdiv", "rows", 0])),
    "duplicate key": text.to_bytes(plan()).replace(b'"page":64', b'"page":64,"page":64'),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_hostile_file_is_an_integrity_error(name):
    with pytest.raises(IntegrityError):
        text.parse(MALFORMED[name])


def test_another_version_is_told_from_damage():
    with pytest.raises(IncompatibleError, match="dsv2/plan/9"):
        text.parse(edited(lambda d: d.update(schema="dsv2/plan/9")))


def test_the_smallest_program_that_holds_a_call_is_taken():
    p = plan().programs["decode"]
    sized = {f"decode-{n}": dataclasses.replace(p, limits={**p.limits, "rows": n, "batch": n}) for n in (1, 8, 32)}
    found = dataclasses.replace(plan(), programs=sized)
    assert [found.smallest("decode", rows=n, batch=n) for n in (1, 2, 8, 9, 32, 33)] == [
        "decode-1", "decode-8", "decode-8", "decode-32", "decode-32", None,
    ]  # fmt: skip
    assert found.smallest("prefill", rows=1) is None
