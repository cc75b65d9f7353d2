"""Edits of the kernels' sources that make them wrong, with some configurations and shapes."""

from tests.planted_edits import attention, experts, linear, rows, sampling

EDITS = [*linear.EDITS, *experts.EDITS, *rows.EDITS, *attention.EDITS, *sampling.EDITS]
