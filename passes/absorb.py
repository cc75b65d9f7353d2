"""The MLA up-projections: expanded, absorbed or merged, chosen per program by cost."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as replace_fields

import sympy
import torch
from torch import fx

from dsv2_compile.config import ModelConfig
from dsv2_compile.errors import UsageError
from dsv2_compile.kernels.dialect import OPS, Cost
from dsv2_compile.passes.core import Outcome, Pass, aten, call, register, replace, rewrite, split, weight
from dsv2_compile.passes.match import Call, Match, Var, weight_node
from dsv2_compile.program import Program, TensorSpec
from dsv2_compile.targets import TARGETS, Target
from dsv2_compile.weights import Concat, HeadMatmul, Recipe, Reshape, Slice, Transpose

_ATEN, _DSV2 = torch.ops.aten, torch.ops.dsv2
FORMS = ("expanded", "absorbed", "merged")

_Q = Call(_ATEN.view.default, (Call(_ATEN.linear.default, (Var("x"), weight_node("w_q"))), Var("q_shape")))
_ROPE = Call(_DSV2.rope.default, (_Q, Var("cos"), Var("sin"), Var("nope")))
_MLA = Call(
    _DSV2.mla_expanded.default,
    (_ROPE, Var("cache"), Var("rows"), weight_node("w_kv"), Var("past"), Var("scale"), Var("v_dim")),
    name="attention",
)
PATTERN = Call(_ATEN.linear.default, (Call(_ATEN.flatten.using_ints, (_MLA, -2)), weight_node("w_o")))


@dataclass(frozen=True)
class Workload:
    """The sizes a program is costed at."""

    batch: int
    tokens: int
    context: int


WORKLOADS = {"prefill": Workload(1, 512, 1024), "decode": Workload(1, 1, 2048)}


@register
class Absorb(Pass):
    """q_nope . (W_UK c) = (W_UK^T q_nope) . c, and sum_t p_t (W_UV c_t) = W_UV (sum_t p_t c_t), per head.

    expanded: K and V per head from every cached latent. absorbed: W_UK goes to the query, W_UV to the
    output, attention runs on the latents, one head of L + R values for all. merged: besides, W_UK^T W_UQ
    and W_O W_UV are single matrices. The cheapest at the phase's workload on the target is taken.
    """

    name = "absorb"
    tolerance = 1e-11
    requires = ("attention",)

    def __init__(self, target: Target | None = None, forms: dict[str, str] | None = None) -> None:
        self.target, self.forms = target or TARGETS["cpu"], forms or {}

    def expected(self, config: ModelConfig, phase: str) -> int:
        return config.num_hidden_layers

    def apply(self, program: Program) -> Outcome:
        workload = WORKLOADS[program.phase]
        form, reason = "", ""

        def change(m: Match) -> None:
            nonlocal form, reason
            if not form:  # every layer has the same sizes: decide once
                form, reason = self._decide(program, m, workload)
                program.notes["mla_form"] = form
            _REWRITES[form](program, m, m["w_kv"].target.removesuffix(".kv_b_proj.weight"))

        return replace_fields(rewrite(program, PATTERN, change), reason=reason)

    def _decide(self, program: Program, m: Match, workload: Workload) -> tuple[str, str]:
        times = {form: self._seconds(program, m, form, workload) for form in FORMS}
        form = self.forms.get(program.phase) or min(times, key=lambda f: times[f])
        by = "asked for" if program.phase in self.forms else "cheapest"
        bounds = ", ".join(f"{f} {t * 1e6:.3g} us" for f, t in times.items())
        sizes = ", ".join(f"{name} {value}" for name, value in vars(workload).items())
        return form, f"{form}, {by}: {bounds} per layer at {sizes} on {self.target.name}"

    def _seconds(self, program: Program, m: Match, form: str, workload: Workload) -> float:
        sizes = {sympy.Symbol(k, integer=True, nonnegative=True): v for k, v in vars(workload).items()}

        def number(d: object) -> float:
            return float(d.subs(sizes)) if isinstance(d, sympy.Expr) else float(d)  # type: ignore[arg-type]

        return sum(self.target.seconds(number(c.bytes), number(c.flops)) for c in _costs(program, m, form))


def _costs(program: Program, m: Match, form: str) -> list[Cost]:
    """Costs of the operators in which the three forms differ: q up, attention, o down."""
    c = program.config
    heads, latent = c.num_attention_heads, c.kv_lora_rank
    q: TensorSpec = m["attention"].args[0].meta["spec"]
    x: TensorSpec = m["x"].meta["spec"]
    cache, rows, past, w_kv = (m[k].meta["spec"] for k in ("cache", "rows", "past", "w_kv"))
    lead, dtype = q.shape[:3], q.dtype

    def linear(k: int, n: int) -> Cost:
        w = TensorSpec((1, n, k), dtype)
        return OPS[_DSV2.head_linear.default].cost(TensorSpec((*lead[:2], 1, k), dtype), w)

    def per_head(k: int, n: int) -> Cost:
        return OPS[_DSV2.head_linear.default].cost(TensorSpec((*lead, k), dtype), TensorSpec((heads, n, k), dtype))

    def absorbed() -> Cost:
        wide = TensorSpec((*lead, c.cache_dim), dtype)
        return OPS[_DSV2.mla_absorbed.default].cost(wide, cache, rows, past, m["scale"], latent)

    q_in = int(x.shape[-1])
    if form == "expanded":
        attention = OPS[_DSV2.mla_expanded.default].cost(q, cache, rows, w_kv, past, m["scale"], m["v_dim"])
        return [linear(q_in, heads * c.qk_head_dim), attention, linear(heads * c.v_head_dim, c.hidden_size)]
    if form == "absorbed":
        up, down = per_head(c.qk_nope_head_dim, latent), per_head(latent, c.v_head_dim)
        outer = [linear(q_in, heads * c.qk_head_dim), linear(heads * c.v_head_dim, c.hidden_size)]
        return [*outer, up, absorbed(), down]
    return [linear(q_in, heads * c.cache_dim), absorbed(), linear(heads * latent, c.hidden_size)]


def _halves(program: Program, m: Match) -> tuple[Recipe, Recipe]:
    """W_UK [H, nope, L] and W_UV [H, v, L]: kv_b_proj interleaves them head by head."""
    c = program.config
    per_head = c.qk_nope_head_dim + c.v_head_dim
    whole = Reshape(program.weights[m["w_kv"].target], (c.num_attention_heads, per_head, c.kv_lora_rank))
    return Slice(whole, 1, 0, c.qk_nope_head_dim), Slice(whole, 1, c.qk_nope_head_dim, per_head)


def _attend(program: Program, m: Match, q: fx.Node) -> fx.Node:
    args = (q, m["cache"], m["rows"], m["past"], m["scale"], program.config.kv_lora_rank)
    return call(program, m["attention"], _DSV2.mla_absorbed.default, *args)


def _absorbed(program: Program, m: Match, prefix: str) -> None:
    c = program.config
    at: fx.Node = m["attention"]
    q: fx.Node = at.args[0]  # type: ignore[assignment]
    spec: TensorSpec = q.meta["spec"]
    w_uk, w_uv = _halves(program, m)
    uk = weight(program, f"{prefix}.w_uk", Transpose(w_uk, 1, 2), spec.dtype)
    uv = weight(program, f"{prefix}.w_uv", w_uv, spec.dtype)
    q_nope, q_pe = split(program, at, q, [c.qk_nope_head_dim, c.qk_rope_head_dim])
    q_latent = call(program, at, _DSV2.head_linear.default, q_nope, uk)
    wide = TensorSpec((*spec.shape[:3], c.cache_dim), spec.dtype)
    q_wide = aten(program, at, _ATEN.cat.default, wide, [q_latent, q_pe], -1)
    out = _attend(program, m, q_wide)
    replace(at, call(program, at, _DSV2.head_linear.default, out, uv))


def _merged(program: Program, m: Match, prefix: str) -> None:
    c = program.config
    heads, latent, rope = c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim
    at: fx.Node = m["attention"]
    x: TensorSpec = m["x"].meta["spec"]
    q_in, dtype = int(x.shape[-1]), x.dtype
    w_uk, w_uv = _halves(program, m)
    w_q = Reshape(program.weights[m["w_q"].target], (heads, c.qk_head_dim, q_in))
    q_latent = HeadMatmul(Transpose(w_uk, 1, 2), Slice(w_q, 1, 0, c.qk_nope_head_dim))
    rotary = Slice(w_q, 1, c.qk_nope_head_dim, c.qk_head_dim)
    q_all = Reshape(Concat((q_latent, rotary), dim=1), (heads * c.cache_dim, q_in))
    w_o = Transpose(Reshape(program.weights[m["w_o"].target], (c.hidden_size, heads, c.v_head_dim)), 0, 1)
    o_all = Reshape(Transpose(HeadMatmul(w_o, w_uv), 0, 1), (c.hidden_size, heads * latent))

    wq = weight(program, f"{prefix}.q_merged.weight", q_all, dtype)
    wo = weight(program, f"{prefix}.o_merged.weight", o_all, dtype)
    lead = x.shape[:2]
    q = aten(program, at, _ATEN.linear.default, TensorSpec((*lead, heads * c.cache_dim), dtype), m["x"], wq)
    shape = [*m["q_shape"][:2], heads, latent + rope]
    q = aten(program, at, _ATEN.view.default, TensorSpec((*lead, heads, c.cache_dim), dtype), q, shape)
    q = call(program, at, _DSV2.rope.default, q, m["cos"], m["sin"], latent)
    flat = TensorSpec((*lead, heads * latent), dtype)
    out = aten(program, m.root, _ATEN.flatten.using_ints, flat, _attend(program, m, q), -2)
    replace(m.root, aten(program, m.root, _ATEN.linear.default, m.root.meta["spec"], out, wo))


def _expanded(program: Program, m: Match, prefix: str) -> None:
    """What the reference writes; nothing to do."""


_REWRITES = {"expanded": _expanded, "absorbed": _absorbed, "merged": _merged}


def check_forms(forms: dict[str, str]) -> None:
    for phase, form in forms.items():
        if phase not in WORKLOADS or form not in FORMS:
            raise UsageError(
                f"no MLA form {form!r} for {phase!r}", f"phases: prefill, decode; forms: {', '.join(FORMS)}"
            )
