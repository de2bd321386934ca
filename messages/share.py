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
