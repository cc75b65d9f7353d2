"""The next token."""

from __future__ import annotations

from tests.planted_edits.core import MASK, ORDER, PLACE, SCALE, STALE, STATE, TAIL, TIE, TILE, beyond, edit, several

_BOTH_TOKENS = "argmax sample"


# fmt: off
EDITS = [
    edit("argmax", "_highest", TIE, "last of equal blocks", "value > best", "value >= best",
        several("VOCAB", "BLOCK")),
    edit(_BOTH_TOKENS, "_highest", TIE, "last of equal lanes", "tl.min(tl.where(best == top, where, VOCAB), 0)",
        "tl.max(tl.where(best == top, where, -1), 0)"),
    edit(_BOTH_TOKENS, "_highest", MASK, "missing tokens are 0", 'other=float("-inf"))', "other=0.0)",
        beyond("VOCAB", "BLOCK")),
    edit("argmax", "_highest", TAIL, "block that is not full left out", "range(0, VOCAB, BLOCK)",
        "range(0, VOCAB // BLOCK * BLOCK, BLOCK)"),
    edit("argmax", "_highest", TAIL, "last token left out", "lane < VOCAB", "lane < VOCAB - 1"),
    edit("argmax", "_highest", PLACE, "token within its block", "where = tl.where(better, at + lane, where)",
        "where = tl.where(better, lane, where)", several("VOCAB", "BLOCK")),
    edit("argmax", "argmax", PLACE, "rows too close", "* VOCAB", "* (VOCAB - 1)"),
    edit("argmax", "argmax", STALE, "first row not stored", "tl.store(tokens + row, index)",
        "tl.store(tokens + row, index, mask=row > 0)"),
    edit("argmax", "argmax", ORDER, "every row is also the last", "tl.store(tokens + row, index)",
        "tl.store(tokens + rows - 1, index)\n    tl.store(tokens + row, index)"),
    edit("sample", "sample", TILE, "top 1 is not cut", "(k > 0) & (k < VOCAB)", "(k > 1) & (k < VOCAB)"),
    edit("sample", "sample", TIE, "all of the equal kept", "kept = tl.minimum(equal, k - above)", "kept = equal"),
    edit("sample", "sample", SCALE, "no top p", "if p < 1:", "if p < 0:"),
    edit("sample", "sample", SCALE, "no temperature", "tl.maximum(heat, 1e-30)", "1.0"),
    edit("sample", "_nth", TILE, "the one after", "(place == n)", "(place == n + 1)"),
    edit("sample", "_nth", STATE, "blocks forget the one before", "seen += tl.sum(equal, 0)", "seen += 0",
        several("VOCAB", "BLOCK")),
    edit("sample", "sample", PLACE, "number of the first row", "tl.load(uniform + row)", "tl.load(uniform + row * 0)"),
    edit("sample", "_ordered", TIE, "two zeros", "tl.where(logits == 0.0, 0.0, logits)", "logits"),
    edit("sample", "_ordered", TIE, "negative ones backwards", "tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)", "bits"),
    edit("sample", "_around", TAIL, "block that is not full left out", "range(0, VOCAB, BLOCK)",
        "range(0, VOCAB // BLOCK * BLOCK, BLOCK)"),
]
# fmt: on
