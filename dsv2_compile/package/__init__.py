"""An engine as other servers want it: triton.py writes a model repository for Triton Inference Server."""

from dsv2_compile.package.triton import Packaged, Request, package

__all__ = ["Packaged", "Request", "package"]
