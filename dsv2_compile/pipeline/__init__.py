"""``build``, whole: from a checkpoint to a checked engine, by one of the backends."""

from dsv2_compile.pipeline.core import REJECTED, BuildPlan, BuildReport, build, plan

__all__ = ["REJECTED", "BuildPlan", "BuildReport", "build", "plan"]
