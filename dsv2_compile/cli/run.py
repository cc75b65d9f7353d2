"""``run``: text in, text out."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsv2_compile.cli.command import Command, Result, at_least, engine_argument
from dsv2_compile.cli.format import duration
from dsv2_compile.cli.output import Console
from dsv2_compile.errors import ModelError, UsageError

if TYPE_CHECKING:
    from dsv2_compile.runtime import Engine, Token

MAX_INPUT = 16 << 20
"""Bytes read from standard input: far above what the longest context holds."""

DRAWING = ("top_k", "top_p", "seed")
"""Options with an effect on random draws only."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    engine_argument(parser)
    parser.add_argument(
        "prompts",
        metavar="PROMPT",
        nargs="*",
        help="text to go on from; several run as one batch; without one it is read from standard input",
    )
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128, metavar="N", help="per prompt (128)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (0)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest (all)")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest that sum to P (1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the random draws (0)")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="per program call (all cores)")
    parser.add_argument("--ids", action="store_true", help="prompts and output are token ids: '17 4 256'")


def _run(args: argparse.Namespace, console: Console) -> Result:
    texts = args.prompts or [_standard_input()]
    given = [_ids(text) for text in texts] if args.ids else None
    drawing = {name: value for name in DRAWING if (value := getattr(args, name)) is not None}
    if drawing and args.temperature == 0:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in drawing)
        raise UsageError(
            f"{flags} has no effect at temperature 0.", "Give a --temperature such as 0.7, or leave it out."
        )
    console.progress("loading", 0, 0)
    from dsv2_compile.runtime import Engine, Sampling

    sampling = Sampling(args.temperature, **drawing)
    start = time.perf_counter()
    with Engine.load(args.engine, args.threads) as engine:
        loaded = time.perf_counter()
        prompts = given or [engine.text.encode(text) for text in texts]
        shown = _Shown(console, len(prompts), args.ids)
        first = 0.0
        try:
            with engine.generate(prompts, args.max_new_tokens, sampling) as generation:
                for token in generation:
                    first = first or time.perf_counter()
                    shown.add(token)
                    if console.reader_gone:
                        break
        finally:
            shown.end_line()
        counts = [len(ids) for ids in prompts], [len(tokens) for tokens in shown.tokens]
        stats = _stats(loaded - start, first - loaded, time.perf_counter() - first, *counts)
        console.note(_told(stats))
        data = {"engine": str(args.engine), "engine_status": engine.manifest.status, "sampling": asdict(sampling)}
        return Result({**data, "completions": _completions(engine, shown, counts[0]), "stats": stats})


def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("There is no prompt.", "Give one as an argument, or on standard input.")
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise UsageError(f"Standard input has more than {MAX_INPUT >> 20} MiB.", "Shorten the prompt.")
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as e:
        raise ModelError(
            f"Standard input is not UTF-8 text: {e.reason} at byte {e.start}.", "Convert the prompt."
        ) from e


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(
            f"With --ids a prompt is a list of integers, not {text[:40]!r}.", "Write '17 4 256'."
        ) from None


class _Shown:
    """Prints tokens as they come. Of several prompts one is live, the others wait for their turn."""

    def __init__(self, console: Console, count: int, ids: bool) -> None:
        self._console, self._ids = console, ids
        self.tokens: list[list[Token]] = [[] for _ in range(count)]
        self._waiting: list[deque[Token]] = [deque() for _ in range(count)]
        self._live = 0
        self._open = False

    def add(self, token: Token) -> None:
        self.tokens[token.prompt].append(token)
        self._waiting[token.prompt].append(token)
        while self._live < len(self._waiting) and self._waiting[self._live]:
            self._print(self._waiting[self._live].popleft())

    def _print(self, token: Token) -> None:
        if not self._open and len(self.tokens) > 1:
            self._console.data(f"==> prompt {token.prompt + 1} <==")
        ids = f"{' ' if self._open else ''}{token.id}"
        self._console.data(ids if self._ids else token.text, end="")
        self._open = True
        if token.finish:
            self.end_line()
            self._live += 1

    def end_line(self) -> None:
        if self._open:
            self._console.data("")
            self._open = False


def _completions(engine: Engine, shown: _Shown, lengths: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_tokens": length,
            "ids": [t.id for t in tokens],
            "text": "".join(t.text for t in tokens) if engine.has_text else None,
            "finish": tokens[-1].finish if tokens else None,
        }
        for length, tokens in zip(lengths, shown.tokens, strict=True)
    ]


def _stats(load: float, first: float, rest: float, prompt: list[int], made: list[int]) -> dict[str, Any]:
    """``first``: seconds until the first token of the batch; ``rest``: from there to the last one."""
    after = sum(made) - 1
    return {
        "prompt_tokens": sum(prompt),
        "new_tokens": sum(made),
        "load_seconds": load,
        "first_token_seconds": first,
        "tokens_per_second": after / rest if after > 0 and rest > 0 else None,
    }


def _told(stats: dict[str, Any]) -> str:
    rate = stats["tokens_per_second"]
    parts = [
        f"loaded in {duration(stats['load_seconds'])}",
        f"{stats['prompt_tokens']} prompt tokens, first token after {duration(stats['first_token_seconds'])}",
        f"{stats['new_tokens']} new tokens" + (f" at {rate:.1f} tokens/s" if rate else ""),
    ]
    return "; ".join(parts)


COMMAND = Command("run", "Continue a text with an engine.", _arguments, _run)
