"""The command line: one file per command, their table in ``main``. Nothing heavy is imported before it is needed."""
