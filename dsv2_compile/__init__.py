"""A compiler for the DeepSeek-V2 family: checkpoint in, checked engine out."""

__version__ = "0.1.0"
