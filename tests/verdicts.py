"""What the two runtimes say of engines and files of unknown origin: 0, or the exit code of the refusal, and the cause.

`python -m tests.verdicts KIND` answers for Python as the program verdict (runtime/cpp/tests/verdict.cpp) does for C++:
paths on standard input, a line for each. Imports no more than what loads an engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv2_compile.checkpoint.files import FileError
from dsv2_compile.checkpoint.safetensors_file import HeaderError, SafetensorsFile
from dsv2_compile.engine import integrity, strictjson
from dsv2_compile.engine import manifest as manifests
from dsv2_compile.errors import Dsv2Error, IntegrityError
from dsv2_compile.plan import text
from dsv2_compile.plan.plan import FILE

Verdict = tuple[int, str]
ROOT = Path(__file__).parents[1]


def _engine(path: Path) -> None:
    manifest = integrity.read_manifest(path)
    integrity.verify(path, manifest)
    if manifest.backend == "cuda" and FILE in manifest.files:
        with open(path / FILE, "rb") as f:
            text.parse(f.read(text.MAX_BYTES + 1))


def _json(path: Path) -> None:
    with open(path, "rb") as f:
        strictjson.loads(f.read(manifests.MAX_BYTES + 1), manifests.MAX_BYTES)


def _safetensors(path: Path) -> None:
    SafetensorsFile(path.parent, path.name)


KINDS: dict[str, Callable[[Path], None]] = {"engine": _engine, "json": _json, "safetensors": _safetensors}


def python(kind: str, path: Path) -> Verdict:
    """An exception that no caller expects is 1, as it would be the exit code."""
    try:
        KINDS[kind](path)
    except Dsv2Error as e:
        return e.exit_code, " | ".join((e.cause, *e.problems))
    except (strictjson.JsonError, HeaderError, FileError) as e:
        return IntegrityError.exit_code, str(e)
    except Exception as e:
        return 1, f"{type(e).__name__}: {e}"
    return 0, ""


@dataclass(frozen=True)
class Measured:
    """``seconds`` of processor time, ``peak`` bytes of memory."""

    verdicts: list[Verdict]
    seconds: float
    peak: int


def measured(command: Sequence[str], paths: Iterable[Path]) -> Measured:
    """Of a process that answers for ``paths``. AssertionError unless it ends well, with a line for each."""
    asked = [str(p) for p in paths]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin and process.stdout
    questions = "".join(f"{p}\n" for p in asked)
    writer = threading.Thread(target=lambda: (process.stdin.write(questions), process.stdin.flush()))
    writer.start()
    lines = [process.stdout.readline() for _ in asked]
    writer.join()
    status = Path(f"/proc/{process.pid}/status").read_text()  # ru_maxrss would begin with the memory of this process
    process.stdin.close()
    _, ended, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(ended)
    process.stdout.close()
    assert process.returncode == 0, process.returncode
    split = [line.rstrip("\n").split("\t", 1) for line in lines]
    peak = int(status.split("VmHWM:")[1].split()[0]) << 10
    return Measured([(int(c), cause) for c, cause in split], usage.ru_utime + usage.ru_stime, peak)


def main() -> None:
    for line in sys.stdin:
        code, cause = python(sys.argv[1], Path(line.removesuffix("\n")))
        print(code, ascii(cause), sep="\t", flush=True)


if __name__ == "__main__":
    main()
