"""What is held of a run and what retention has deleted, in words and for scripts."""

from __future__ import annotations

from typing import Any

from orchestrator.documents import Retained


def kept(retained: Retained | None) -> str | None:
    """What is held and what is gone, in words; None when there is nothing to say."""
    if retained is None:
        return None
    words = (
        [f"held since {retained.held_at:%Y-%m-%d %H:%M:%S} UTC, nothing more is deleted"] if retained.held_at else []
    )
    if retained.updates_before:
        words.append(f"updates of rounds before {retained.updates_before} are deleted")
    if retained.models_before:
        spared = ", ".join(map(str, retained.spared))
        words.append(
            f"weights of rounds before {retained.models_before}" + (f" but {spared}" if spared else "") + " too"
        )
    return "; ".join(words) or None


def as_json(retained: Retained | None) -> dict[str, Any] | None:
    """The same for scripts; null when nothing was held or deleted."""
    if retained is None:
        return None
    return retained.model_dump(include={"held_at", "updates_before", "models_before", "spared", "because"})
