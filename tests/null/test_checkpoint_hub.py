"""Cases 12 and 13: models of the hub. A hub on the loopback interface, and the errors that its client raises."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.checkpoint.hub import is_hub_id
from dsv2_compile.errors import Dsv2Error
from tests.checkpoints import TINY, shard_name, tiny_tensors, write
from tests.hub import COMMIT, MODEL, Hub, serve

http = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])
"""The HTTP library of the installed client."""

CONFIG = TINY | {"vocab_size": 500_000}
"""24 MB in each of two shards: the client writes what it gets in blocks of 10 MiB."""

PROBE = """
import json, sys
from dsv2_compile.checkpoint import Checkpoint
from dsv2_compile.errors import Dsv2Error
try:
    c = Checkpoint.open(sys.argv[1], revision=sys.argv[2] or None)
    out = {"path": str(c.path), "name": c.name, "revision": c.revision, "notes": c.notes, "hash": c.weights_sha256()}
    out["aux"] = [p.name for p in c.aux_files]
except Dsv2Error as e:
    out = {"exit": e.exit_code, "text": str(e)}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = write(tmp_path_factory.mktemp("hub") / "model", tiny_tensors(CONFIG), CONFIG, shards=2)
    (folder / "modeling_deepseek.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "generation_config.json").write_text("{}")
    (folder / "original").mkdir()
    (folder / "original/model.safetensors").write_bytes(b"another")
    return folder


@pytest.fixture
def hub(source) -> Iterator[Hub]:
    with serve(source) as hub:
        yield hub


def open_model(hub: Hub, cache: Path, revision: str = "", model: str = MODEL, **env: str) -> dict[str, Any]:
    """In a process of its own: the client reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    settings |= {"HF_TOKEN": "", "NO_PROXY": "127.0.0.1", **env}
    run = subprocess.run(
        [sys.executable, "-c", PROBE, model, revision],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | settings,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


class TestAgainstAHub:
    def test_revision_is_resolved_and_only_data_are_fetched(self, hub, source, tmp_path):
        """Case 12; then the same from the cache, pinned, without a hub."""
        out = open_model(hub, tmp_path)
        assert out["revision"] == COMMIT and out["name"] == MODEL
        assert f"revision main is not pinned; it is now {COMMIT}" in out["notes"]
        assert out["hash"] == Checkpoint.open(source).weights_sha256()
        assert out["aux"] == ["config.json", "generation_config.json"]
        fetched = {a.split("/resolve/")[1].split("/", 1)[1] for a in hub.asked if "/resolve/" in a}
        settings = {"config.json", "generation_config.json", "model.safetensors.index.json"}
        assert fetched == settings | {shard_name(0, 2), shard_name(1, 2)}
        assert Path(out["path"], "config.json").is_symlink(), "the cache of this client has no links: nothing is tested"
        hub.asked.clear()
        pinned = open_model(hub, tmp_path, COMMIT, HF_HUB_OFFLINE="1")
        assert pinned["hash"] == out["hash"] and pinned["revision"] == COMMIT
        assert not any("pinned" in n for n in pinned["notes"])
        assert hub.asked == []

    def test_a_cut_download_goes_on(self, hub, source, tmp_path):
        """Case 13: the connection ends after 22 MB of the first shard."""
        hub.cut[shard_name(0, 2)] = 22_000_000
        out = open_model(hub, tmp_path)
        assert out["hash"] == Checkpoint.open(source).weights_sha256()
        ((name, start),) = hub.ranges
        assert name == shard_name(0, 2) and int(start) >= 10_000_000

    def test_a_foreign_model_is_refused_before_its_weights_are_fetched(self, hub, tmp_path):
        hub.folder = tmp_path / "foreign"
        hub.folder.mkdir()
        (hub.folder / "config.json").write_text('{"model_type": "llama"}')
        (hub.folder / "model.safetensors").write_bytes(b"x")
        out = open_model(hub, tmp_path / "cache")
        assert out["exit"] == 3 and "supported: deepseek_v2" in out["text"]
        assert not any("safetensors" in a for a in hub.asked)

    def test_only_pickled_weights(self, hub, tmp_path):
        hub.folder = tmp_path / "pickled"
        hub.folder.mkdir()
        (hub.folder / "config.json").write_text(json.dumps(TINY))
        (hub.folder / "pytorch_model.bin").write_bytes(b"x")
        out = open_model(hub, tmp_path / "cache")
        assert out["exit"] == 3 and "Take a model or revision that has safetensors" in out["text"]
        assert not any(".bin" in a for a in hub.asked)

    @pytest.mark.parametrize(
        "status, code, exit_code, text",
        [
            (401, None, 5, "HF_TOKEN"),
            (403, "GatedRepo", 5, "HF_TOKEN"),
            (404, "RepoNotFound", 3, "HF_TOKEN"),
            (404, "RevisionNotFound", 3, "Correct --revision"),
            (429, None, 5, "HF_TOKEN"),
            (503, None, 5, "HF_ENDPOINT"),
        ],
    )
    def test_refusals(self, status, code, exit_code, text, hub, tmp_path):
        hub.status, hub.error_code = status, code
        out = open_model(hub, tmp_path, "v1")
        assert out["exit"] == exit_code and MODEL in out["text"]
        assert text in out["text"].splitlines()[1]

    def test_offline(self, hub, tmp_path):
        out = open_model(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert out["exit"] == 5 and "HF_HUB_OFFLINE=0" in out["text"]
        assert hub.asked == []

    def test_no_hub_there(self, hub, tmp_path):
        out = open_model(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
        assert out["exit"] == 5 and "HF_ENDPOINT" in out["text"]


def response(status: int) -> Any:
    return http.Response(status, request=http.Request("GET", "https://huggingface.co/api/models/some/model"))


def wrapped(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


RAISED: list[tuple[Exception, int, str]] = [
    (errors.OfflineModeIsEnabled("offline"), 5, "HF_HUB_OFFLINE=0"),
    (wrapped(errors.LocalEntryNotFoundError("x"), errors.OfflineModeIsEnabled("y")), 5, "HF_HUB_OFFLINE=0"),
    (errors.GatedRepoError("x", response=response(403)), 5, "HF_TOKEN"),
    (errors.RepositoryNotFoundError("x", response=response(401)), 3, "HF_TOKEN"),
    (errors.RevisionNotFoundError("x", response=response(404)), 3, "--revision"),
    (errors.HfHubHTTPError("x", response=response(401)), 5, "HF_TOKEN"),
    (errors.HfHubHTTPError("x", response=response(429)), 5, "HF_TOKEN"),
    (wrapped(errors.LocalEntryNotFoundError("x"), errors.HfHubHTTPError("y", response=response(429))), 5, "HF_TOKEN"),
    (errors.HfHubHTTPError("x", response=response(500)), 5, "HF_ENDPOINT"),
    (wrapped(errors.LocalEntryNotFoundError("x"), http.ConnectError("refused")), 5, "HF_ENDPOINT"),
    (http.ReadTimeout("slow"), 5, "goes on where it stopped"),
    (http.RemoteProtocolError("peer closed connection without sending complete message body"), 5, "goes on where"),
    (errors.XetDownloadError("cut"), 5, "goes on where it stopped"),
    (OSError("Consistency check failed: file should be of size 10 but has size 5"), 5, "goes on where it stopped"),
    (errors.IncompleteSnapshotError("x", snapshot_path="/x"), 5, "goes on where it stopped"),
    (OSError(errno.ENOSPC, "No space left on device"), 6, "HF_HOME"),
    (errors.HFValidationError("x"), 3, "OWNER/NAME"),
]


@pytest.mark.parametrize(
    "error, exit_code, remedy", RAISED, ids=[f"{i}-{type(r[0]).__name__}" for i, r in enumerate(RAISED)]
)
def test_errors_of_the_client(error, exit_code, remedy, monkeypatch):
    """Case 13: each names what to set or do, in one line, and keeps the client's own error as its cause."""

    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(Dsv2Error) as e:
        Checkpoint.open(MODEL, revision="v1")
    assert e.value.exit_code == exit_code and remedy in e.value.remedy
    assert e.value.cause.isprintable() and e.value.remedy.isprintable()
    assert e.value.__cause__ is error


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(stop, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> str:
        raise stop

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(stop):
        Checkpoint.open(MODEL)


def test_hub_ids():
    good = ["deepseek-ai/DeepSeek-V2", "a/b", "A1/b_c.d-e"]
    bad = [
        "",
        "a",
        "a/b/c",
        "/a",
        "a/",
        "../a",
        "a/..",
        "./a",
        "a/.b",
        "a b/c",
        "a/b\n",
        "-a/b",
        "a/" + "b" * 100,
        "~/a",
    ]
    assert [m for m in good + bad if is_hub_id(m)] == good


def test_patterns_name_files_and_nothing_else(monkeypatch, tmp_path):
    """An index of a hostile model asks for ``*``: it gets no more than a file of that name."""
    asked = []

    def fetched(model: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((revision, allow_patterns))
        return str(tmp_path / COMMIT)

    folder = write(tmp_path / COMMIT, tiny_tensors(), shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "*", "b": "[a-z].bin"}}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    with pytest.raises(Dsv2Error):
        Checkpoint.open(MODEL, revision="v1")
    assert [revision for revision, _ in asked] == ["v1", COMMIT], "the weights must be of the commit of the settings"
    assert asked[1][1] == ["[*]", "[[]a-z].bin"]
