"""JSON Schemas (draft 2020-12) of what each command prints with --json; usage.json if no command was recognised."""
