"""Loads an engine and runs it: numpy and ONNX Runtime, no compiler.

engine = Engine.load("engine-dir")
for token in engine.generate("Hello", max_new_tokens=64):
    print(token.text, end="")
"""

from dsv2_compile.runtime.engine import Engine
from dsv2_compile.runtime.generate import Completion, Generation, Token
from dsv2_compile.runtime.sampling import Draw, Sampling
from dsv2_compile.runtime.scheduler import Scheduler, Submission
from dsv2_compile.runtime.session import Session

__all__ = ["Completion", "Draw", "Engine", "Generation", "Sampling", "Scheduler", "Session", "Submission", "Token"]
