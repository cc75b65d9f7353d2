"""The rotary embedding of a config.json, in the spelling of published files or that of transformers 5."""

from __future__ import annotations

from typing import Any

from dsv2_compile.checkpoint.fields import Fields, Span
from dsv2_compile.config import RopeConfig

_KINDS = ("default", "yarn")
_THETA = Span(1, 1_000_000_000_000, above=True)
_POSITIONS = Span(1, 1 << 24)
_NUMBERS: dict[str, tuple[Span, float]] = {
    "beta_fast": (Span(0, 1_000_000, above=True), 32.0),
    "beta_slow": (Span(0, 1_000_000, above=True), 1.0),
    "mscale": (Span(0, 100), 1.0),
    "mscale_all_dim": (Span(0, 100), 0.0),
}
"""Of yarn: allowed span and the published model's default."""

_ONLY: dict[str, tuple[Any, str]] = {
    "attention_factor": (None, "the published model has mscale and mscale_all_dim for it"),
    "truncate": (True, "the published model rounds the range that is interpolated"),
    "partial_rotary_factor": (1, "the published model rotates all of qk_rope_head_dim"),
}


def parse_rope(config: Fields) -> RopeConfig | None:
    """``rope_parameters``, or ``rope_scaling``; theta inside it or beside it. None if a problem was found."""
    before = len(config.problems)
    beside = config.number("rope_theta", _THETA, None)
    found = {key: _parse(inner) for key in ("rope_parameters", "rope_scaling") if (inner := config.object(key))}
    if len(config.problems) > before:
        return None
    thetas = {theta for _, theta in found.values() if theta} | ({beside} if beside else set())
    ropes = {rope for rope, _ in found.values()}
    if len(thetas) > 1:
        config.refuse("rope_theta", f"the file gives more than one: {', '.join(map(str, sorted(thetas)))}")
    if len(ropes) > 1:
        config.refuse("rope_parameters", "it says something else than rope_scaling")
    if len(config.problems) > before:
        return None
    fields = ropes.pop() if ropes else ()
    return RopeConfig(**{"theta": thetas.pop() if thetas else 10_000.0, **dict(fields)})


def _parse(fields: Fields) -> tuple[tuple[tuple[str, Any], ...], float | None]:
    """(fields of RopeConfig without theta, theta)."""
    before = len(fields.problems)
    names = [fields.choice(key, _KINDS, None) for key in ("rope_type", "type")]
    if None not in names and names[0] != names[1]:
        fields.refuse("type", f"{names[1]}, but rope_type is {names[0]}")
    kind = names[0] or names[1]
    if kind is None and len(fields.problems) == before:
        fields.refuse("rope_type", f"missing; it must be one of {', '.join(_KINDS)}")
    theta = fields.number("rope_theta", _THETA, None)
    for key, (value, reason) in _ONLY.items():
        fields.only(key, value, reason)
    if kind != "yarn":
        return (("kind", "default"),), theta
    values: dict[str, Any] = {"kind": "yarn", "factor": fields.number("factor", Span(1, 10_000))}
    key = "original_max_position_embeddings"
    values[key] = fields.integer(key, _POSITIONS)
    values |= {key: fields.number(key, span, default) for key, (span, default) in _NUMBERS.items()}
    fast, slow = values["beta_fast"], values["beta_slow"]
    if fast is not None and slow is not None and fast < slow:
        fields.refuse("beta_fast", f"{fast:g} is below beta_slow, {slow:g}")
    return tuple(values.items()), theta
