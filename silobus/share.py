"""Which tensors are exchanged: shell-style patterns over their names.

Only the rule lives here. It is the contract's: patterns are read in order, `!` excludes, the last that matches
wins, and a name that nothing matches stays private. Several lists narrow each other: a name must pass every one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def checked(patterns: Iterable[str], *, whose: str) -> tuple[str, ...]:
    """The patterns, or an error that says whose they are and what is wrong."""
    if isinstance(patterns, str):
        raise TypeError(f'{whose}: share is a list of patterns, such as ["*", "!head.*"], not one string')
    listed = tuple(patterns)
    for pattern in listed:
        if not isinstance(pattern, str) or not pattern.removeprefix("!"):
            raise ValueError(f"{whose}: {pattern!r} is not a pattern over tensor names")
    return listed


def is_shared(name: str, *lists: Sequence[str]) -> bool:
    """Whether every one of the lists lets this tensor out."""
    return all(_last_match_includes(name, patterns) for patterns in lists)


def _last_match_includes(name: str, patterns: Sequence[str]) -> bool:
    for pattern in reversed(patterns):
        if fnmatchcase(name, pattern.removeprefix("!")):
            return not pattern.startswith("!")
    return False
