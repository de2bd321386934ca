"""What payloads a round has: under which names a script finds and leaves them, and how each is laid out.

Here lives what differs between roles, and nothing else does: fetching, judging and publishing are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, assert_never

from messages.safetensors_layout import Layout
from messages.schemas import Purpose, Role, RoundAnnounced


def wanted(announced: RoundAnnounced) -> Iterator[Role]:
    """What a round's update brings, the weights first; nothing when evaluating."""
    match announced.purpose:
        case Purpose.INITIALISE:
            yield "weights"
        case Purpose.TRAIN:
            yield from sorted(set(announced.roles), reverse=True)
        case Purpose.EVALUATE:
            pass
        case _:
            assert_never(announced.purpose)


def given_as(role: Role) -> str:
    """The file's name in the input."""
    return f"{role}.safetensors"


def made_as(role: Role) -> str:
    """The file's name in the output."""
    return "update.safetensors" if role == "weights" else f"{role}.safetensors"


def form(role: Role, announced: RoundAnnounced) -> Literal["weights", "delta"]:
    """Whether it travels whole or as a change."""
    if role == "control":
        return "delta"
    return announced.transfer.form if announced.payloads else "weights"


def layout_given(role: Role, weights: Layout) -> Layout:
    """How a payload to start from is laid out, beside these weights."""
    match role:
        case "weights":
            return weights
        case "control":
            return weights.floating()
        case _:
            assert_never(role)


def layout_made(role: Role, weights: Layout, announced: RoundAnnounced) -> Layout:
    """How what was made of these weights has to be laid out."""
    return weights.cast(announced.transfer.dtype) if role == "weights" else layout_given(role, weights)
