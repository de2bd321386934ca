"""What is wrong with a message, for the person who wrote it: pydantic's findings, said in the message's own words.

Only field names are repeated, never values. Where a field may be of several kinds pydantic complains once for each;
here that becomes one complaint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from messages import names

_MOST: Final = 10
_SHOULD_BE: Final = "Input should be "

_Path = tuple[str, ...]
_Found = list[tuple[_Path, str]]
_Rest = tuple[tuple[int | str, ...], ErrorDetails]
"""A finding, and how to get to it from where one stands."""


def explain(data: Any, error: ValidationError) -> str:
    """Every wrong field of `data` and what it should be; the first ten."""
    errors = error.errors(include_input=False, include_url=False)
    found = _found(data, [(tuple(e["loc"]), e) for e in errors], ())
    return "; ".join(_said(path, text) for path, text in found[:_MOST])


def short(text: str, most: int = 120) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _said(path: _Path, text: str) -> str:
    return f"{short('.'.join(path))}: {short(text, 200)}" if path else short(text, 200)


def _found(value: Any, errors: Sequence[_Rest], path: _Path) -> _Found:
    found: _Found = [(path, _in_our_words(e)) for rest, e in errors if not rest]
    branches: dict[int | str, list[_Rest]] = {}
    fields: dict[int | str, list[_Rest]] = {}
    for rest, e in errors:
        if rest:
            is_field = _is_in(value, rest[0]) or (len(rest) == 1 and e["type"] == "missing")
            (fields if is_field else branches).setdefault(rest[0], []).append((rest[1:], e))
    for name, below in fields.items():
        inside = value[name] if _is_in(value, name) else None
        found += _found(inside, below, (*path, str(name)))
    return found + _merged(value, list(branches.values()), path)


def _is_in(value: Any, name: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(name, int) and name < len(value)
    return isinstance(value, dict) and name in value


def _merged(value: Any, branches: list[list[_Rest]], path: _Path) -> _Found:
    """The findings of all that a field may be, as those of the field; pydantic names them in `loc` as if they were
    fields. What the value cannot have been meant to be is left out."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        branches = [b for b in branches if not all(_is_another_type(rest, e) for rest, e in b)] or branches
    each = [_found(value, branch, path) for branch in branches]
    each = [found for found in each if len(found) == min(map(len, each))]
    if len(each) < 2:
        return each[0] if each else []
    said = list(dict.fromkeys(", ".join(_said(p[len(path) :], text) for p, text in found) for found in each))
    if all(text.startswith(_SHOULD_BE) for text in said):
        said = [said[0], *(text.removeprefix(_SHOULD_BE) for text in said[1:])]
    return [(path, " or ".join(filter(None, (", ".join(said[:-1]), said[-1]))))]


def _is_another_type(rest: tuple[int | str, ...], problem: ErrorDetails) -> bool:
    return not rest and (problem["type"].endswith("_type") or problem["type"] == "literal_error")


def _in_our_words(problem: ErrorDetails) -> str:
    match problem["type"]:
        case "union_tag_invalid":  # pydantic would repeat the value
            return f"`kind` should be one of {problem['ctx']['expected_tags']}"
        case "string_pattern_mismatch" if problem["ctx"]["pattern"] == names.NAME_PATTERN:
            return "String should match the pattern of names: lower-case letters, digits and hyphens between them"
        case "model_type" | "dict_type":
            return f"{_SHOULD_BE}an object"
        case _:
            return problem["msg"].removeprefix("Value error, ")
