"""The tensors of the files against those that config.json asks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from dsv2_compile.checkpoint.fields import short
from dsv2_compile.checkpoint.safetensors_file import TORCH_DTYPES, Entry
from dsv2_compile.checkpoint.shards import Located, Stored, Weights
from dsv2_compile.config import ModelConfig

_STACKED = re.compile(r"model\.layers\.(\d{1,4})\.mlp\.experts\.(gate_up_proj|down_proj)")
_BUFFER = re.compile(r".*\.rotary_emb\.inv_freq")
_WIDE = re.compile(r".*(norm|mlp\.gate)\.weight")
"""Tensors that may be float32 among 16-bit ones: nothing is lost, and some trainers keep them so."""
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def match_layout(config: ModelConfig, weights: Weights) -> Stored:
    """The published tensors, per expert, in the order of the layout. Findings go to ``weights``."""
    from dsv2_compile.model.layout import checkpoint_tensors

    expected = checkpoint_tensors(config)
    stored, refused = _unstacked(config, weights)
    refused |= weights.unreadable
    matched: Stored = {}
    for name, shape in expected.items():
        if name not in stored:
            if name not in refused:
                weights.problems.append(f"{name}: missing; expected {list(shape)}")
            continue
        file, entry = stored.pop(name)
        matched[name] = (file, entry)
        if entry.shape != shape:
            weights.problems.append(f"{name}: shape {list(entry.shape)}, expected {list(shape)}")
    if config.tie_word_embeddings and _HEAD in stored and _EMBEDDING in matched:
        _check_tied(stored.pop(_HEAD), matched[_EMBEDDING], weights)
    unread = {name for name, (_, entry) in stored.items() if _BUFFER.fullmatch(name) or not entry.nbytes}
    if unread:
        weights.notes.append(f"not read, as empty or derived (rotary_emb.inv_freq): {len(unread)} tensors")
    weights.problems += [f"{short(n)[1:-1]}: not a tensor of this model" for n in sorted(stored.keys() - unread)]
    weights.problems += _dtype_problems(matched)
    return matched


def stored_dtype(matched: Stored) -> str:
    """The torch name of the dtype that most bytes have."""
    return TORCH_DTYPES[_bytes_by_dtype(matched).most_common(1)[0][0]]


def _bytes_by_dtype(matched: Stored) -> Counter[str]:
    counts: Counter[str] = Counter()
    for _, entry in matched.values():
        counts[entry.dtype] += entry.nbytes
    return counts


def _unstacked(config: ModelConfig, weights: Weights) -> tuple[Stored, set[str]]:
    """The tensors with stacked experts replaced by the experts they hold, and names in stacks that were refused."""
    stored = dict(weights.stored)
    refused: set[str] = set()
    for name in list(weights.stored) + sorted(weights.unreadable):
        found = _STACKED.fullmatch(name)
        if not found or int(found[1]) >= config.num_hidden_layers or not config.is_moe(int(found[1])):
            continue
        if name not in stored:
            refused |= {part for part, _, _ in _parts(config, name)}
            continue
        file, whole = stored.pop(name)
        shape = _stacked_shape(config, found[2])
        if whole.shape != shape:
            weights.problems.append(f"{name}: shape {list(whole.shape)}, expected {list(shape)}")
            refused |= {part for part, _, _ in _parts(config, name)}
        elif whole.dtype not in TORCH_DTYPES:
            weights.problems.append(f"{name}: {_dtype_text(whole)}")
            refused |= {part for part, _, _ in _parts(config, name)}
        else:
            parts = {part: (file, whole.part(start, dims)) for part, start, dims in _parts(config, name)}
            if twice := stored.keys() & parts.keys():
                weights.problems.append(f"{name}: {len(twice)} of its experts are there a second time, as {min(twice)}")
            stored |= parts
    return stored, refused


def _stacked_shape(config: ModelConfig, kind: str) -> tuple[int, ...]:
    experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
    return (experts, 2 * width, hidden) if kind == "gate_up_proj" else (experts, hidden, width)


def _parts(config: ModelConfig, name: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(published name, first element, shape) of every matrix in a stack: per expert gate then up, or down."""
    prefix, _, kind = name.rpartition(".")
    width, hidden = config.moe_intermediate_size, config.hidden_size
    projections = ("gate", "up") if kind == "gate_up_proj" else ("down",)
    shape = (width, hidden) if kind == "gate_up_proj" else (hidden, width)
    for i in range(config.n_routed_experts * len(projections)):
        expert, projection = divmod(i, len(projections))
        yield f"{prefix}.{expert}.{projections[projection]}_proj.weight", i * width * hidden, shape


def _check_tied(head: Located, embedding: Located, weights: Weights) -> None:
    """A head stored beside tied embeddings must be the same bytes: loaders do not agree which of the two counts."""
    if head[0].data(head[1]) == embedding[0].data(embedding[1]) and head[1].dtype == embedding[1].dtype:
        weights.notes.append(f"{_HEAD} is stored beside tied embeddings and equals them")
    else:
        weights.problems.append(f"{_HEAD}: differs from {_EMBEDDING}, but tie_word_embeddings is true")


def _dtype_problems(matched: Stored) -> Iterator[str]:
    usual = next((d for d, _ in _bytes_by_dtype(matched).most_common() if d in TORCH_DTYPES), None)
    for name, (_, entry) in matched.items():
        if entry.dtype not in TORCH_DTYPES:
            yield f"{name}: {_dtype_text(entry)}"
        elif entry.dtype != usual and not (entry.dtype == "F32" and _WIDE.fullmatch(name)):
            yield f"{name}: dtype {entry.dtype} among tensors of {usual}"


def _dtype_text(entry: Entry) -> str:
    return f"dtype {entry.dtype} is not one of {', '.join(TORCH_DTYPES)}"
