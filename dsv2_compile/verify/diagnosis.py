"""Where to look when a check fails: the first bad layer, what feeds it, and what is right beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv2_compile.config import ModelConfig
from dsv2_compile.verify.rule import Verdict

Verdicts = Mapping[int | None, Verdict]
"""By layer, and under None the logits."""


HALVES = {
    "latent": "latent norm, or the latent rows of its kv projection",
    "key": "rotation, the positions, the last rows of its kv projection, or a factor that the latent norm takes out",
}
"""What makes one part of a cache row wrong and not the other."""


@dataclass(frozen=True)
class Finding:
    """What is wrong on one path with one program. ``layer``: the first with bad rows, None if only the logits are
    bad; ``suspects``: the layers that can have made them so."""

    path: str
    phase: str
    layer: int | None
    suspects: tuple[int, ...]
    what: str

    def __str__(self) -> str:
        return f"{self.path}, {self.phase}: {self.what}"


def first_bad(verdicts: Verdicts, config: ModelConfig) -> int | None:
    """The first layer with bad rows; None if there is none."""
    return next((i for i in range(config.num_hidden_layers) if i in verdicts and not verdicts[i].passed), None)


def finding(
    path: str, phase: str, verdicts: Verdicts, config: ModelConfig, wrong_half: str = "", right: str = ""
) -> Finding | None:
    """None if all is well. ``wrong_half``: ``latent`` or ``key``, if only that part of the first bad rows is off;
    ``right``: what the same check finds in order."""
    bad = first_bad(verdicts, config)
    beside = f"; {right}" if right else ""
    if bad is None:
        if None not in verdicts or verdicts[None].passed:
            return None
        last = config.num_hidden_layers - 1
        what = (
            f"the rows of all layers are right, the logits are off{_how(verdicts[None])}: look at layer {last} after "
            f"its cache rows ({_tail(config, last)}), the final norm, the choice of the last token or lm_head"
        )
        return Finding(path, phase, None, (last,), what + beside)
    how = _how(verdicts[bad])
    if wrong_half:
        what = f"only the {wrong_half} in the rows of layer {bad} is off{how}: look at its {HALVES[wrong_half]}"
        return Finding(path, phase, bad, (bad,), what + beside)
    own = f"the input norm, kv projection, latent norm and rotation of layer {bad}"
    if bad == 0:
        what = f"rows of layer 0 are off{how}: look at the embedding, or {own}"
        return Finding(path, phase, bad, (0,), what + beside)
    what = (
        f"rows of layer {bad} are off{how}, rows of layer {bad - 1} are right: look at layer {bad - 1} after its cache "
        f"rows ({_tail(config, bad - 1)}), or {own}"
    )
    return Finding(path, phase, bad, (bad - 1, bad), what + beside)


def too_large(phase: str, layer: int | None, ratio: float, config: ModelConfig) -> Finding:
    """No row is out of bounds, but the rows of ``layer`` are off by too much on average."""
    where = "the logits" if layer is None else f"the rows of layer {layer}"
    last = config.num_hidden_layers - 1
    suspects = (last,) if layer is None else (0,) if layer == 0 else (layer - 1, layer)
    what = (
        f"{where} are less precise than eager mode, {ratio:.2f} times the limit on average: look for rounding to a "
        f"smaller dtype, or a constant nearly right, in layer {' or '.join(map(str, suspects))}"
    )
    return Finding("every path", phase, layer, suspects, what)


def _tail(config: ModelConfig, layer: int) -> str:
    """What a layer does after its cache rows."""
    return f"query, attention, output projection, {'experts' if config.is_moe(layer) else 'MLP'}"


def _how(v: Verdict) -> str:
    if "nonfinite" in v.failed:
        return f" ({v.error.nan} NaN, {v.error.inf} infinite)"
    if "rel_l2_p95" in v.failed and "angle" not in v.failed:
        return f" (only in scale, x{v.error.scale:.7g})"
    worst = max(v.failed, key=lambda name: getattr(v.error, name) / max(v.limits[name], 1e-300))
    return f" ({worst} {getattr(v.error, worst):.2e}, limit {v.limits[worst]:.2e})"
