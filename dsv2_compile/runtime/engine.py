"""An engine directory, checked and loaded."""

from __future__ import annotations

import os
import warnings
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from dsv2_compile.config import ModelConfig
from dsv2_compile.engine import integrity
from dsv2_compile.engine.manifest import Manifest
from dsv2_compile.errors import UsageError
from dsv2_compile.runtime import generate
from dsv2_compile.runtime.generate import Generation, Prompts
from dsv2_compile.runtime.loaders import Loaded, Pages, loader
from dsv2_compile.runtime.sampling import Sampling
from dsv2_compile.runtime.scheduler import Scheduler
from dsv2_compile.runtime.session import Session
from dsv2_compile.runtime.text import Text

if TYPE_CHECKING:
    from dsv2_compile.runtime.ort import Program
    from dsv2_compile.runtime.ort_model import OrtModel


class Engine:
    """A loaded engine. Sessions share its weights; it may be used from several threads."""

    def __init__(self, root: Path, manifest: Manifest, loaded: Loaded) -> None:
        """For `load`, which checks the directory."""
        self.path, self.manifest = root, manifest
        self.config: ModelConfig = manifest.model
        self.max_batch_size, self.max_seq_len = manifest.max_batch_size, manifest.max_seq_len
        self._loaded: Loaded | None = loaded

    @classmethod
    def load(cls, path: str | Path, threads: int | None = None, cache_tokens: int | None = None) -> Engine:
        """Check and load the engine at ``path``; ``threads`` per program call, None for all cores we may use.

        ``cache_tokens``: positions that the KV cache of a GPU engine has room for, of all sequences of all sessions.
        UsageError: no such directory. IntegrityError: a file differs from what was built.
        IncompatibleError: another backend, an older ONNX Runtime than it was built with, no GPU or another one.
        Nothing but the manifest is read before the last is known, nothing loaded before the hashes are.
        """
        if threads is None:
            threads = len(os.sched_getaffinity(0))
        if threads < 1:
            raise UsageError(f"threads is {threads}.", "Use at least one thread.")
        root = Path(path)
        manifest = integrity.read_manifest(root)
        backend = loader(manifest)
        backend.require_compatible(manifest)
        integrity.verify(root, manifest)
        if manifest.status != "verified":
            warnings.warn(f"{root} is unverified: its numeric check failed or was not run.", stacklevel=2)
        return cls(root, manifest, backend.load(root, manifest, threads, cache_tokens))

    def session(self, max_batch: int = 1, max_tokens: int | None = None) -> Session:
        """Open a session of ``max_batch`` slots with ``max_tokens`` positions each, None for the engine's limit."""
        loaded = self._require_open()
        positions = self.max_seq_len if max_tokens is None else max_tokens
        for name, value, limit in (
            ("max_batch", max_batch, self.max_batch_size),
            ("max_tokens", positions, self.max_seq_len),
        ):
            if not 1 <= value <= limit:
                raise UsageError(f"{name} is {value}, this engine takes 1..{limit}.", "Rebuild it for a larger limit.")
        return Session(self, max_batch, positions, loaded.store(self, max_batch, positions))

    def generate(self, prompts: Prompts, max_new_tokens: int = 128, sampling: Sampling | None = None) -> Generation:
        """Stream tokens for one text, several texts, or several lists of token ids.

        More prompts than max_batch_size wait for a free slot. UsageError for a bad argument, at once.
        """
        self._require_open()
        return generate.start(self, prompts, max_new_tokens, sampling or Sampling())

    def scheduler(
        self,
        max_batch: int | None = None,
        max_tokens: int | None = None,
        chunk_tokens: int = 256,
        max_waiting: int = 1024,
    ) -> Scheduler:
        """Open a scheduler of at most ``max_batch`` sequences at once, ``max_tokens`` positions each, None for the
        engine's limits. ``chunk_tokens``: most prompt tokens between two decode steps; ``max_waiting``: requests that
        wait for a slot."""
        return Scheduler(self, max_batch, max_tokens, chunk_tokens, max_waiting)

    @property
    def pages(self) -> Pages | None:
        """The pages of the KV cache that sessions share; None where each has a cache of its own."""
        return self._require_open().pages()

    def program(self, phase: str) -> Program:
        """The ONNX program of ``phase``, for `ContiguousStore`."""
        return cast("OrtModel", self._require_open()).programs[phase]

    def _require_open(self) -> Loaded:
        if self._loaded is None:
            raise UsageError("The engine is closed.", "Load it again with Engine.load().")
        return self._loaded

    @property
    def has_text(self) -> bool:
        return "tokenizer.json" in self.manifest.files

    @cached_property
    def text(self) -> Text:
        """The engine's tokenizer, loaded when first used."""
        return Text(self.path, self.config)

    def close(self) -> None:
        """Unload; later calls of this engine and its sessions are UsageErrors. Closing twice is harmless."""
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
