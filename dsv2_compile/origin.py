"""Which line of the reference an operator comes from: for messages about graphs, which hold no lines."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.fx.traceback import annotate
from torch.overrides import TorchFunctionMode

_PACKAGE = Path(__file__).parent
_TORCH = str(Path(torch.__file__).parent)
_HERE = (__file__, str(_PACKAGE / "export.py"))


class Origins(TorchFunctionMode):
    """While on, and under `torch.fx.traceback.preserve_node_meta`, an exported node's ``meta["custom"]["from"]``
    names the functions and the line that called its operator."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        frames = []
        frame = sys._getframe(1)
        while frame.f_code.co_name != "forward" or frame.f_code.co_filename not in _HERE:
            frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
            if frame.f_back is None:
                break
            frame = frame.f_back
        with annotate({"from": _text(frames[::-1])}):
            return func(*args, **(kwargs or {}))


def raised_at(e: BaseException) -> str:
    """The same for an exception out of a trace: the innermost line that is not torch's."""
    return _text([(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(e.__traceback__)])


def written(node: fx.Node) -> str:
    """For the end of a message: where the reference has the line of ``node``, if it was exported."""
    return f", from {node.meta['from']}" if "from" in node.meta else ""


def _text(frames: Sequence[tuple[str, int, str]]) -> str:
    """``layer > mlp (dsv2_compile/model/reference.py:96: gate = ...)``; ``frames`` outermost first."""
    mine = [f for f in frames if not f[0].startswith((_TORCH, "<")) and f[0] not in _HERE]
    if not mine:
        return "before its first operator"
    file, line, _ = mine[-1]
    shown = Path(file).relative_to(_PACKAGE.parent) if file.startswith(str(_PACKAGE)) else file
    return f"{' > '.join(name for _, _, name in mine)} ({shown}:{line}: {linecache.getline(file, line).strip()})"
