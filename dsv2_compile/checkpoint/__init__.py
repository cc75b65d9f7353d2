"""Reads checkpoints, and writes random ones."""

from dsv2_compile.checkpoint.reader import Checkpoint

__all__ = ["Checkpoint"]
