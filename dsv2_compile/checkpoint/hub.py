"""Fetches a model of the Hugging Face hub into its cache: data files only, of one commit."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dsv2_compile.checkpoint import aux_files
from dsv2_compile.errors import Dsv2Error, IncompatibleError, ModelError, ResourceError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(model: str) -> bool:
    return _ID.fullmatch(model) is not None and len(model) <= 96


def is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def fetch(model: str, revision: str | None, names: Sequence[str]) -> Path:
    """The snapshot folder with ``names``, those that the model has; its own name is the commit.

    Only what the cache lacks is fetched; a download that was cut goes on where it stopped. No code is fetched.
    ModelError if model or revision are not there, ResourceError if the disk is full, IncompatibleError otherwise.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(model, revision):
        return Path(snapshot_download(model, revision=revision, allow_patterns=[glob.escape(n) for n in names]))


def fetch_settings(model: str, revision: str | None) -> Path:
    """`fetch` of everything that is not weights."""
    from dsv2_compile.checkpoint.shards import INDEX

    return fetch(model, revision, [*aux_files.NAMES, INDEX])


@contextmanager
def _hub_errors(model: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # the client raises its own classes, those of its HTTP library and OSError
        raise _explained(e, model, revision) from e


_TOKEN = "Accept the model's terms on its page, and set HF_TOKEN to a token that may read it."
_NAME = "Check the name; for a private model set HF_TOKEN to a token that may read it."
_OFFLINE = "Set HF_HUB_OFFLINE=0 to let it be fetched, or give the directory of a copy."
_LATER = (
    "Wait a while, or set HF_TOKEN: the hub allows more requests with it. What is there already is not fetched again."
)
_AGAIN = (
    "Run the same command again: it goes on where it stopped. HF_ENDPOINT names another hub, HF_HUB_OFFLINE=1 none."
)


def _explained(e: Exception, model: str, revision: str | None) -> Dsv2Error:
    """The innermost cause that is known decides: the client wraps what went wrong, often in "not in the cache"."""
    from huggingface_hub import errors

    at = f"{model} at {revision}" if revision else model
    chain: list[BaseException] = [e]
    while (cause := chain[-1].__cause__) is not None and len(chain) < 8:
        chain.append(cause)
    known: tuple[tuple[type[Exception], type[Dsv2Error], str, str], ...] = (
        (errors.GatedRepoError, IncompatibleError, f"The hub does not give out {at} without permission.", _TOKEN),
        (errors.RepositoryNotFoundError, ModelError, f"The hub has no model {model}, or does not show it.", _NAME),
        (errors.RevisionNotFoundError, ModelError, f"{model} has no revision {revision}.", "Correct --revision."),
        (errors.HFValidationError, ModelError, f"{model} is not a hub id.", "Give OWNER/NAME or a directory."),
        (
            errors.OfflineModeIsEnabled,
            IncompatibleError,
            f"{at} is not in the cache, and HF_HUB_OFFLINE is set.",
            _OFFLINE,
        ),
    )
    inner_first = chain[::-1]
    for link in inner_first:
        for kind, error, cause_line, remedy in known:
            if isinstance(link, kind):
                return error(cause_line, remedy)
    for link in inner_first:
        if getattr(link, "errno", None) == errno.ENOSPC:
            return ResourceError(
                f"The disk is full: {at} is not complete.", "Free disk space, or set HF_HOME elsewhere."
            )
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            remedy = {401: _TOKEN, 403: _TOKEN, 429: _LATER}.get(status, _AGAIN)
            return IncompatibleError(f"The hub answered HTTP {status} when asked for {at}.", remedy)
    what = " ".join(f"{type(chain[-1]).__name__}: {chain[-1]}".split())[:200]
    return IncompatibleError(f"Fetching {at} failed: {what}.", _AGAIN)
