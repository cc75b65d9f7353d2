"""The judge that runs candidates: each is checked and then timed, in a process of its own, on the GPU that records
are for."""
