"""The C++ runtime installed, and used as a program outside of this tree would use it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from dsv2_compile import __version__
from dsv2_compile.runtime import Engine, Sampling
from tests import cpp_build, toy_engine

(WHEEL,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
PROMPTS = [[5, 6, 7, 8], [200], [1, 2, 3], [9] * 40, [7, 7], [30, 20, 10], [4], [6, 5]]
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed tree."""
    prefix = tmp_path_factory.mktemp("installed")
    _run("cmake", "--install", str(cpp_build.built()), "--prefix", str(prefix))
    return prefix


@pytest.fixture(scope="module")
def example(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of examples/, configured and built in a copy of that folder."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(cpp_build.SOURCE / "examples", folder / "examples")
    _run(
        "cmake", "-S", str(folder / "examples"), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DCMAKE_CXX_FLAGS={' '.join(STRICT[1:])}",
    )  # fmt: skip
    _run("cmake", "--build", str(folder))
    return folder / "generate"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "engine"
    toy_engine.build(folder)
    return folder


def test_the_example_gives_what_python_gives(example: Path, engine: Path) -> None:
    flags = ("--ids", "--max-new-tokens", "9", "--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "3")
    lines = "".join(" ".join(map(str, p)) + "\n" for p in PROMPTS)
    done = _example(example, engine, *flags, given=lines)
    assert (done.returncode, done.stderr) == (0, "")
    with Engine.load(engine) as loaded:
        made = loaded.generate(PROMPTS, 9, Sampling(0.8, 50, 0.9, 3)).completions()
    assert [[int(t) for t in line.split()] for line in done.stdout.splitlines()] == [list(c.tokens) for c in made]


def test_the_example_takes_text(example: Path, engine: Path) -> None:
    done = _example(example, engine, "--max-new-tokens", "12", given="caf\u00e9\n")
    with Engine.load(engine) as loaded:
        (made,) = loaded.generate(["caf\u00e9"], 12).completions()
    assert (done.returncode, done.stdout) == (0, made.text + "\n")


@pytest.mark.parametrize(
    ("flags", "given", "code"),
    [
        ((), "", 2),
        (("--ids",), "1 2 x\n", 2),
        (("--ids",), "1 260\n", 2),
        (("--ids", "--temperature", "nan"), "1\n", 2),
        (("--ids", "--speed", "9"), "1\n", 2),
        (("--ids",), f"1\n{toy_engine.NAN}\n", 4),
    ],
)
def test_the_example_exits_as_the_command_line(
    example: Path, engine: Path, flags: tuple[str, ...], given: str, code: int
) -> None:
    done = _example(example, engine, *flags, given=given)
    assert done.returncode == code
    assert done.stderr


def test_a_damaged_engine(example: Path, engine: Path, tmp_path: Path) -> None:
    shutil.copytree(engine, tmp_path / "engine")
    path = tmp_path / "engine" / "decode.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = _example(example, tmp_path / "engine", "--ids", given="1\n")
    assert done.returncode == 8
    assert "decode.onnx" in done.stderr


@pytest.mark.parametrize(("language", "compiler"), [("cpp", ("c++", *STRICT)), ("c", ("cc", "-std=c99", *STRICT[1:]))])
def test_the_programs_of_the_readme(
    prefix: Path, engine: Path, tmp_path: Path, language: str, compiler: tuple[str, ...]
) -> None:
    readme = (cpp_build.SOURCE / "README.md").read_text()
    source, program = tmp_path / f"readme.{language}", tmp_path / "readme"
    source.write_text(readme.split(f"```{language}\n")[1].split("```")[0])
    _run(*compiler, str(source), *_place(prefix), "-o", str(program))
    done = subprocess.run([program, engine], capture_output=True, text=True, env=_environment())
    assert (done.returncode, done.stderr) == (0, "")
    with Engine.load(engine) as loaded:
        made = loaded.generate([[17, 4, 256], [9]] if language == "cpp" else [[17, 4, 256]], 32).completions()
    printed = [line.split(": ") for line in done.stdout.splitlines()]
    assert [[int(t[-1]) for t in printed if t[:-1] in ([], [str(i)])] for i in range(len(made))] == [
        list(c.tokens) for c in made
    ]


@pytest.mark.parametrize("flags", [(), ("-fno-exceptions", "-fno-rtti")])
def test_the_headers(prefix: Path, engine: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    program, source = tmp_path / "installed", cpp_build.SOURCE / "tests" / "installed.cpp"
    _run("c++", *STRICT, *flags, str(source), *_place(prefix), "-o", str(program))
    done = subprocess.run([program, engine], capture_output=True, text=True, env=_environment())
    assert (done.returncode, done.stderr) == (0, "")
    misused = subprocess.run([program, engine, "misuse"], capture_output=True, text=True, env=_environment())
    assert misused.returncode == -6
    assert "/nowhere is not a directory" in misused.stderr


def test_the_abi_is_plain_c(prefix: Path, tmp_path: Path) -> None:
    source = tmp_path / "plain.c"
    source.write_text(
        '#include "dsv2/dsv2.h"\n#include "dsv2/dsv2_text.h"\nint main(void) { return !dsv2_version(); }\n'
    )
    _run("cc", "-std=c99", "-Wall", "-Wpedantic", "-Werror", f"-I{prefix}/include", "-c", str(source), "-o", os.devnull)


def test_the_library_shows_its_abi_alone(prefix: Path) -> None:
    (library,) = prefix.glob("lib*/libdsv2.so")
    names = _run("nm", "-D", "--defined-only", "--format=just-symbols", str(library)).split()
    ours = {n for n in names if n.startswith("dsv2_")}
    assert {"dsv2_engine_load", "dsv2_generate", "dsv2_text_open"} <= ours
    strangers = {n for n in names if "dsv2" in n} - ours
    assert not strangers
    needed = _run("readelf", "-d", str(library))
    assert not [n for n in ("cuda", "onnxruntime", "python", "torch") if f"lib{n}" in needed]


@pytest.mark.parametrize(("component", "found"), [("onnxruntime", True), ("text", True), ("tensorrt", False)])
def test_components(prefix: Path, tmp_path: Path, component: str, found: bool) -> None:
    major, minor, _ = __version__.split(".")
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.20)\nproject(outside LANGUAGES CXX)\n"
        f"find_package(dsv2 {major}.{minor} CONFIG REQUIRED COMPONENTS {component})\n"
    )
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "b"), f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == found, done.stderr


def _example(example: Path, engine: Path, *flags: str, given: str) -> subprocess.CompletedProcess[str]:
    command = [str(example), str(engine), *flags]
    return subprocess.run(command, input=given, capture_output=True, text=True, env=_environment(), timeout=60)


def _place(prefix: Path) -> tuple[str, ...]:
    """What a compiler needs to find the library, without CMake."""
    (folder,) = prefix.glob("lib*")
    return f"-I{prefix}/include", f"-L{folder}", f"-Wl,-rpath,{folder}", "-ldsv2"


def _environment() -> dict[str, str]:
    """Nothing of this tree; the wheel's ONNX Runtime."""
    return {"PATH": os.environ["PATH"], "DSV2_ONNXRUNTIME": str(WHEEL)}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
