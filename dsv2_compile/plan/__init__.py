"""The native plan: what a GPU program is made of. Read by every executor, so it needs neither torch nor triton."""
