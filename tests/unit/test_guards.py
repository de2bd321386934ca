"""The guards as data (`tests/guards/*.toml`) fit the code, and docs/testing.md lists exactly them."""

from __future__ import annotations

import ast
import re

import pytest

from tests.guards import ROOT, Guard, guards, mutated, sets, tables

ALL = [pytest.param(guard, id=f"{name}: {guard.name}") for name in sets() for guard in guards(name)]


@pytest.mark.parametrize("guard", ALL)
def test_a_guard_can_be_removed(guard: Guard) -> None:
    for name, text in mutated(guard, ROOT).items():
        assert text != (ROOT / name).read_text()
        compile(text, name, "exec")


@pytest.mark.parametrize("guard", ALL)
def test_the_tests_of_a_guard_exist(guard: Guard) -> None:
    assert guard.test
    for test in guard.test:
        path, *parts = test.split("::")
        assert (ROOT / path).exists()
        if parts:
            tree = ast.parse((ROOT / path).read_text())
            named = {
                n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            }
            assert {re.sub(r"\[.*", "", part) for part in parts} <= named


def test_the_document_lists_exactly_the_guards() -> None:
    listed = tables((ROOT / "docs" / "testing.md").read_text())
    for name in sets():
        assert listed[f"Guards of the {name.replace('-', ' ')}"] == [guard.name for guard in guards(name)]
