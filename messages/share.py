"""Which tensors an experiment exchanges: shell-style patterns over their names. Pure.

The training contract's rule, which `silobus.share` states once more for scripts: it may not import this.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def lets_through(name: str, patterns: Sequence[str]) -> bool:
    """Whether patterns name a tensor: `!` excludes, the last that matches decides, unnamed is no."""
    for pattern in reversed(patterns):
        if fnmatchcase(name, pattern.removeprefix("!")):
            return not pattern.startswith("!")
    return False


def lets_nothing_through(patterns: Sequence[str]) -> bool:
    """Whether no name at all gets through: each pattern that lets some in is followed by one that takes them all out.

    Two patterns with wildcards are compared only as far as that is plain: the same text, or one within the other's `*`.
    """
    return all(
        pattern.startswith("!") or any(e.startswith("!") and _covers(e[1:], pattern) for e in patterns[place + 1 :])
        for place, pattern in enumerate(patterns)
    )


def _covers(wide: str, narrow: str) -> bool:
    is_plain = not any(wildcard in narrow for wildcard in "*?[")
    is_within_stars = "[" not in narrow and not any(wildcard in wide for wildcard in "?[")
    return wide == narrow or not wide.strip("*") or ((is_plain or is_within_stars) and fnmatchcase(narrow, wide))
