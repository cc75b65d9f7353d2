"""Does an engine compute what the eager model computes? Checked at every build, and offline again later.

Checking an engine by its golden data needs numpy and ONNX Runtime only; making golden data needs torch.
"""

from dsv2_compile.verify.check import verify_engine
from dsv2_compile.verify.golden import Golden
from dsv2_compile.verify.golden import make as make_golden
from dsv2_compile.verify.report import Report

__all__ = ["Golden", "Report", "make_golden", "verify_engine"]
