"""What a dead letter can carry: its reason and description become properties of limited size."""

from __future__ import annotations

from typing import Final

MOST_BYTES: Final = 4096
"""Of a description; Service Bus takes no more."""


def fitting(description: str) -> str:
    """The description, shortened to what a broker takes."""
    encoded = description.encode("utf-8", errors="replace")
    if len(encoded) <= MOST_BYTES:
        return description
    ellipsis = "…"
    return encoded[: MOST_BYTES - len(ellipsis.encode())].decode("utf-8", errors="ignore") + ellipsis
