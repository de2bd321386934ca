"""docs/schemas/messages.json is what the code says."""

from __future__ import annotations

from orchestrator.cli.maintenance import SCHEMA_FILE, schema_text


def test_the_schema_file_is_that_of_the_code() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "stale: run `make schema`"
