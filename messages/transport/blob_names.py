"""Which container and blob names every store takes: those that mean the same in Azure and in a directory. Pure.

No name that passes here can leave a store's root. A name that does not is a programmer's mistake (ValueError): names
are derived in `messages.names`, never taken from a message.
"""

from __future__ import annotations

import re
from typing import Final

_CONTAINER: Final = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?=[a-z0-9])){2,62}")
_SEGMENT: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}"
_BLOB: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX: Final = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")
_LONGEST: Final = 1024


def check_container(container: str) -> None:
    """Raises ValueError unless it has 3 to 63 lower-case letters, digits and single inner hyphens."""
    if not _CONTAINER.fullmatch(container):
        raise ValueError(f"not a container's name: {container[:80]!r}")


def check_blob(name: str) -> None:
    """Raises ValueError unless it is a path of plain segments, none of which begins with a dot."""
    if len(name) > _LONGEST or not _BLOB.fullmatch(name):
        raise ValueError(f"not a blob's name: {name[:80]!r}")


def check_prefix(prefix: str) -> None:
    """Raises ValueError unless it is the beginning of a blob's name, or empty."""
    if len(prefix) > _LONGEST or not _PREFIX.fullmatch(prefix):
        raise ValueError(f"not the beginning of a blob's name: {prefix[:80]!r}")


def check_range(offset: int, length: int, size: int) -> None:
    """Raises ValueError unless the range lies inside the blob."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{length} bytes from {offset} do not lie inside a blob of {size} bytes")
