"""The published schemas: one for every command, strict, and the same where they say the same."""

from __future__ import annotations

import jsonschema
import pytest

from dsv2_compile.cli.main import COMMANDS, NO_COMMAND
from tests.cli_tools import SCHEMAS, schema

NAMES = [*(c.schema for c in COMMANDS.values()), NO_COMMAND]
ERROR = {"code": "UsageError", "cause": "c", "remedy": "r", "problems": []}


def test_every_command_has_a_schema_and_every_schema_a_command():
    assert {p.stem for p in SCHEMAS.glob("*.json")} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_strict_and_agree(name):
    s = schema(name)
    jsonschema.Draft202012Validator.check_schema(s)
    assert s["additionalProperties"] is False
    assert s["$defs"]["error"] == schema("build")["$defs"]["error"]
    assert s["properties"]["exit"] == schema("build")["properties"]["exit"]
    right = {"schema": f"dsv2/{name}/1", "status": "error", "exit": 2, "warnings": [], "error": ERROR}
    validator = jsonschema.Draft202012Validator(s)
    validator.validate(right)
    wrong = (
        {k: v for k, v in right.items() if k != "error"},
        {"schema": f"dsv2/{name}/1", "status": "ok", "exit": 0, "warnings": []},
        right | {"schema": f"dsv2/{name}/2"},
        right | {"exit": 0},
        right | {"exit": 9},
        right | {"status": "ok"},
        right | {"error": ERROR | {"code": "Oops"}},
        right | {"more": 1},
    )
    for value in wrong:
        assert not validator.is_valid(value), value
