"""Every pass on small graphs: what it makes of them, and the near misses that it must leave alone.

golden/<pass>.txt holds cases: a title, perhaps `with:` settings, a graph, -----, the graph after the pass.
golden/<pass>_negative.txt holds edits of these graphs (lines out with -, lines in with +, each in place of
the last one out), -----, the nearest miss that the pass must name. DSV2_UPDATE_GOLDEN=1 rewrites what follows -----.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import PassError
from dsv2_compile.evaluate import evaluate
from dsv2_compile.ir_text import parse_program, program_text
from dsv2_compile.passes.core import REGISTRY, Outcome, Pass
from dsv2_compile.passes.pipeline import check_graph, pipeline
from dsv2_compile.program import Program
from dsv2_compile.verify.passes import difference

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("DSV2_UPDATE_GOLDEN") == "1"
CONFIG = ModelConfig(
    vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, q_lora_rank=8, kv_lora_rank=10,
    qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, intermediate_size=18, first_k_dense_replace=1,
    moe_intermediate_size=7, n_routed_experts=12, n_shared_experts=1, num_experts_per_tok=2,
    routed_scaling_factor=1.5, max_position_embeddings=512,
)  # fmt: skip
SIZES = {"batch": 2, "tokens": 3, "context": 4}


@dataclass(frozen=True)
class Case:
    """``settings``: phase, form (of MLA), and fields of the config."""

    title: str
    settings: dict[str, Any]
    graph: str
    expected: str

    def program(self) -> Program:
        fields = {k: v for k, v in self.settings.items() if k not in ("phase", "form")}
        return parse_program(self.graph, replace(CONFIG, **fields), self.settings.get("phase", "prefill"))

    def make(self, name: str) -> Pass:
        forms = {self.settings.get("phase", "prefill"): self.settings["form"]} if "form" in self.settings else None
        return next(p for p in pipeline(None, forms) if p.name == name)


def read(path: Path) -> list[Case]:
    cases = []
    for block in path.read_text().split("===== ")[1:]:
        title, _, body = block.partition("\n")
        settings: dict[str, Any] = {}
        if body.startswith("with: "):
            line, _, body = body.partition("\n")
            call = ast.parse(f"with_({line.removeprefix('with: ')})", mode="eval").body
            settings = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        graph, _, expected = body.partition("-----\n")
        cases.append(Case(title, settings, graph.strip() + "\n", expected.strip() + "\n"))
    return cases


def apply(case: Case, name: str) -> tuple[Program, Outcome]:
    program = case.program()
    outcome = case.make(name).apply(program)
    check_graph(program, name)
    return program, outcome


def golden(path: Path, index: int, got: str) -> None:
    """``got`` is what stands after ----- in case ``index`` of the file."""
    if UPDATE:
        blocks = re.split(r"(?m)^(?====== )", path.read_text())
        blocks[index + 1] = blocks[index + 1].partition("-----\n")[0] + "-----\n" + got + "\n"
        path.write_text("".join(blocks).rstrip("\n") + "\n")
    assert got == read(path)[index].expected


def edited(base: str, edits: str) -> str:
    """``base`` with the lines marked - out, and those marked + in where the last of these stood."""
    lines = base.splitlines()
    at = None
    for line in edits.splitlines():
        mark, text = line[0], line[2:]
        if mark == "-":
            assert lines.count(text) == 1, f"no such line: {text}"
            at = lines.index(text)
            lines.remove(text)
        else:
            assert mark == "+"
            assert at is not None, "a line goes out before one goes in"
            lines.insert(at, text)
            at += 1
    return "\n".join(lines) + "\n"


def cases(suffix: str) -> list[Any]:
    out = []
    for name in REGISTRY:
        path = GOLDEN / f"{name}{suffix}.txt"
        out += [pytest.param(name, path, i, c, id=f"{name}-{c.title}") for i, c in enumerate(read(path))]
    return out


def values(program: Program) -> dict[str, torch.Tensor]:
    """Outputs in fp64 on random inputs and random leaves of the weights, the same for the same names."""

    def random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode())), dtype=torch.float64)

    class Source:
        def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
            self.shapes = shapes

        def tensor(self, name: str) -> torch.Tensor:
            return random(name, self.shapes[name])

    inputs = {}
    for name, spec in program.inputs.items():
        shape = spec.concrete(**SIZES)
        inputs[name] = torch.tensor([4, 1]) if name == "past" else torch.ones(shape, dtype=torch.int64)
        if spec.dtype.is_floating_point:
            inputs[name] = random(name, shape)
    weights = {k: r.evaluate(Source(shapes_of(r)), torch.float64) for k, r in program.weights.recipes.items()}
    return {k: v.double() for k, v in evaluate(program, inputs, weights).items()}


def shapes_of(recipe: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the checkpoint tensors under ``recipe``."""
    if hasattr(recipe, "name"):
        return {recipe.name: recipe.dims}
    children = [v for field in vars(recipe).values() for v in (field if isinstance(field, tuple) else (field,))]
    return {k: s for c in children if hasattr(c, "pieces") for k, s in shapes_of(c).items()}


def test_every_pass_has_both_files():
    assert {p.name for p in pipeline()} == set(REGISTRY)
    expected = {f"{name}{suffix}.txt" for name in REGISTRY for suffix in ("", "_negative")}
    assert {p.name for p in GOLDEN.glob("*.txt")} == expected


@pytest.mark.parametrize(("name", "path", "index", "case"), cases(""))
def test_golden(name, path, index, case):
    before = values(case.program())
    program, outcome = apply(case, name)
    assert outcome.matches > 0
    golden(path, index, program_text(program))
    assert difference(before, values(program)) <= case.make(name).tolerance


@pytest.mark.parametrize(("name", "path", "index", "case"), cases("_negative"))
def test_near_misses_are_left_alone(name, path, index, case):
    base = next(c for c in read(GOLDEN / f"{name}.txt") if c.title == case.settings["of"])
    near = replace(case, settings=base.settings, graph=edited(base.graph, case.graph))
    try:
        program, outcome = apply(near, name)
    except PassError as e:
        golden(path, index, f"PassError: {e.cause}\n")
        return
    assert program_text(program) == near.graph, "a near miss was rewritten"
    assert outcome.matches == 0
    golden(path, index, f"{'no candidate was found' if outcome.miss is None else outcome.miss}\n")


@pytest.mark.parametrize("title", ["form", "operator", "undefined", "twice", "dtype", "dim", "type", "after", "end"])
def test_text_that_says_no_program_names_its_line(title):
    good = '%x: float32[batch, 4] = input("x")\n%y: float32[batch, 4] = aten.mul.Tensor(%x, 2)\nreturn y: %y\n'
    program_text(parse_program(good, CONFIG, "prefill"))
    out, into, message = {
        "form": ("%y: ", "%y ", "line 2: a node is `%name: type"),
        "operator": ("mul.Tensor", "mul.Tenser", "line 2: there is no operator aten.mul.Tenser"),
        "undefined": ("(%x, 2)", "(%z, 2)", "line 2: %z is not defined before"),
        "twice": ("%y: ", "%x: ", "line 2: x is taken"),
        "dtype": ("float32[batch, 4] = i", "float33[batch, 4] = i", "line 1: there is no dtype float33"),
        "dim": ("[batch, 4] = i", "[bach, 4] = i", "line 1: bach is not a dimension"),
        "type": ("float32[batch, 4] = i", "float32 = i", "line 1: float32 is not a type"),
        "after": ("return y: %y\n", "return y: %y\nreturn y: %y\n", "line 4: nothing may follow"),
        "end": ("return y: %y\n", "", "line 2: the program does not return"),
    }[title]
    assert good.count(out) == 1
    with pytest.raises(Exception, match=re.escape(message)):
        parse_program(good.replace(out, into), CONFIG, "prefill")
