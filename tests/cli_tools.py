"""Runs the command line as a user does, in a process of its own, and holds its JSON to the published schemas."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

import dsv2_compile
from dsv2_compile.engine import integrity
from dsv2_compile.engine.manifest import FILE_NAME, Manifest

SCHEMAS = Path(dsv2_compile.__file__).parent / "cli" / "schemas"
ROOT = Path(dsv2_compile.__file__).parents[1]
SMALL = ["layers=2", "hidden_size=64", "vocab=300", "intermediate_size=64", "moe_intermediate_size=32", "experts=4"]
SETTINGS = [word for s in SMALL for word in ("--set", s)]
"""For `synth tiny-lite`: a model whose engine is built in seconds."""
LIMITS = ["--max-seq-len", "128", "--max-batch-size", "2"]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def answer(self) -> dict[str, Any]:
        """Standard output as the one JSON object that it must be, valid under the schema it names."""
        value = checked(self.out)
        assert value["exit"] == self.code
        return value

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def checked(out: str) -> dict[str, Any]:
    assert out.endswith("\n")
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    command, version = value["schema"].removeprefix("dsv2/").split("/")
    assert version == "1"
    jsonschema.Draft202012Validator(schema(command)).validate(value)
    return value


def schema(command: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SCHEMAS / f"{command}.json").read_text())
    return loaded


def command_line(args: tuple[Any, ...], setup: str = "") -> list[str]:
    """``setup`` is Python that runs before main, to make something go wrong."""
    if not setup:
        return [sys.executable, "-m", "dsv2_compile", *map(str, args)]
    code = f"import sys\n{setup}\nfrom dsv2_compile.cli.main import main\nsys.exit(main())"
    return [sys.executable, "-c", code, *map(str, args)]


def environment(**changes: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | changes


def cli(
    *args: Any, stdin: str | bytes = "", setup: str = "", before: Callable[[], None] | None = None, **env: str
) -> Ran:
    """Run to the end. ``before`` runs in the child ahead of Python, ``env`` is added to the environment."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    ran = subprocess.run(
        command_line(args, setup),
        input=data,
        capture_output=True,
        env=environment(**env),
        preexec_fn=before,
        timeout=300,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def told(ran: Ran, code: int) -> str:
    """The line of the cause. Cause, problems and remedy must end standard error, one line each, without a trace."""
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    error = next(i for i, line in enumerate(ran.lines) if line.startswith("error: "))
    assert ran.lines[-1].startswith("help: ")
    assert all(line.startswith("  - ") for line in ran.lines[error + 1 : -1])
    return ran.lines[error]


def start(*args: Any, setup: str = "", ignored: bool = False, **kwargs: Any) -> subprocess.Popen[bytes]:
    """Start with pipes; SIGINT is not ignored, whatever we inherited, unless ``ignored``."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | kwargs

    def before() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

    return subprocess.Popen(command_line(args, setup), env=environment(), preexec_fn=before, **pipes)


def ended(process: subprocess.Popen[bytes]) -> Ran:
    out, err = process.communicate(timeout=120)
    return Ran(process.returncode, (out or b"").decode(), (err or b"").decode())


def wait_for(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """Read standard error up to the line that starts with ``text``; what was read."""
    assert process.stderr is not None
    seen = b""
    for line in process.stderr:
        seen += line
        if line.startswith(text):
            return seen
    raise AssertionError(f"{text!r} never came:\n{seen.decode()}")


def once(base: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of this test session, ``base`` being its temporary one, made by whichever test process comes first."""
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder


def resealed(engine: Path, out: Path, change: Callable[[Path, Manifest], Manifest]) -> Path:
    """A copy of ``engine`` with files changed on purpose and hashes that fit, as a faulty build would leave it."""
    shutil.copytree(engine, out)
    manifest = change(out, integrity.read_manifest(out))
    files = {name: integrity.file_entry(out / name) for name in manifest.files}
    (out / FILE_NAME).write_bytes(replace(manifest, files=files).to_bytes())
    return out


def scale_weight(name: str, factor: float) -> Callable[[Path, Manifest], Manifest]:
    def change(root: Path, manifest: Manifest) -> Manifest:
        w = manifest.weights[name]
        values = np.memmap(root / w.file, np.float32, "r+", offset=w.offset, shape=w.shape)
        values *= factor
        values.flush()
        return manifest

    return change
