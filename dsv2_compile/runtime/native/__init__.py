"""Engines that run on a GPU by their native plan."""
