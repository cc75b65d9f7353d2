"""From a config to fused programs: export, passes, and the proof of every pass on the twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dsv2_compile.config import ModelConfig
from dsv2_compile.export import PHASES, export
from dsv2_compile.passes import pipeline
from dsv2_compile.passes.core import Pass, PassRecord
from dsv2_compile.program import Program
from dsv2_compile.targets import Target
from dsv2_compile.verify.passes import check_passes


@dataclass(frozen=True)
class CompileOptions:
    """``forms``: MLA form by phase, overriding the cost model. ``positions``: rows of the rope tables.

    ``check``: prove every pass in fp64 on the twin. ``bisect``: run all passes there even after one
    broke its claim, and report each. ``dump``: directory for the graph after every pass.
    """

    target: Target
    positions: int
    forms: Mapping[str, str]
    check: bool = True
    bisect: bool = False
    dump: Path | None = None


@dataclass(frozen=True)
class Compiled:
    programs: dict[str, Program]
    records: list[PassRecord]


def compile_program(config: ModelConfig, phase: str, options: CompileOptions) -> tuple[Program, list[PassRecord]]:
    """The fused program of ``phase`` and the record of every pass, with its error on the twin."""
    program = export(config, phase, torch.float32, options.positions)
    passes = pipeline.pipeline(options.target, dict(options.forms))
    records = pipeline.run(program, passes, _dumper(program, options.dump))
    pipeline.check_lowerable(program)
    if not options.check:
        return program, records
    # The twin takes the form the full-size program was given, not the one its own sizes would ask for.
    forms = {phase: program.notes["mla_form"]}
    proven = check_passes(config, phase, pipeline.pipeline(options.target, forms), options.bisect)
    return program, [replace(r, error=p.error) for r, p in zip(records, proven, strict=True)]


def compile_model(
    config: ModelConfig, options: CompileOptions, step: Callable[[str], None] = lambda text: None
) -> Compiled:
    """Both programs of ``config``. ``step`` hears what is being done."""
    programs, records = {}, []
    for phase in PHASES:
        step(f"export and passes, {phase}")
        programs[phase], done = compile_program(config, phase, options)
        records += done
    return Compiled(programs, records)


def _dumper(program: Program, directory: Path | None) -> Callable[[Pass, PassRecord], PassRecord] | None:
    if directory is None:
        return None
    from dsv2_compile.ir_text import program_text

    directory.mkdir(parents=True, exist_ok=True)
    count = 0

    def write(name: str) -> None:
        nonlocal count
        (directory / f"{program.phase}.{count:02d}.{name}.txt").write_text(program_text(program))
        count += 1

    write("exported")

    def after(p: Pass, record: PassRecord) -> PassRecord:
        write(p.name)
        return record

    return after
