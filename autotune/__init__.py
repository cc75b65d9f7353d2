"""Which configuration of each kernel is fast on a target: search, records of what was found, and their use."""
