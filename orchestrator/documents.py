"""The JSON documents in `state/`, as models: what the orchestrator keeps, and what operators' tools may read.

Pure shapes and their JSON; reading and writing them is `orchestrator.store`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from messages.fields import Name, RoundNumber, RunId, Time
from messages.schemas import SiloHeartbeat, SiloHello
from orchestrator.experiment.effects import Effect
from orchestrator.experiment.state import State


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    version: Literal[1] = 1


class Numbered(_Document):
    """An effect with its place in the outbox: the id of the message it sends is `<run>-<sequence>`."""

    sequence: int = Field(ge=1)
    effect: Effect


class ExperimentDocument(_Document):
    """`state/experiments/<name>.json`: a state, and the effects of the event that led to it."""

    state: State
    sequence: int = Field(default=0, ge=0)
    """The last number given to an effect; never given again."""
    outbox: tuple[Numbered, ...] = ()
    """Effects not known to be performed, belonging to the state beside them. Nothing moves on before they are done."""


class Presence(_Document):
    """`state/presence/<silo>.json`: what a silo offers and when it was last heard of."""

    silo: Name
    seen_at: Time
    """When its last message was enqueued, by the broker's clock."""
    hello: SiloHello | None = None
    hello_at: Time | None = None
    """When that hello was enqueued."""
    heartbeats: Mapping[RunId, SiloHeartbeat] = {}
    """The last one of each run; only recent runs."""
    heartbeats_at: Mapping[RunId, Time] = {}
    """When those were enqueued."""

    def offers(self, task: str) -> bool:
        """Whether the silo's owner allows this task."""
        return self.hello is not None and any(offer.task == task for offer in self.hello.offers)


class Retained(_Document):
    """`state/retention/<run>.json`: what of a run is deleted or about to be, said before the first blob goes."""

    run: RunId
    held_at: Time | None = None
    """Since when an operator holds the run: nothing more of it is deleted."""
    asked_at: Time | None = None
    """When the last hold or release was posted, by the broker's clock; an older one comes too late."""
    updates_before: RoundNumber = 0
    """Updates of rounds below this one are deleted, or about to be."""
    models_before: RoundNumber = 0
    """Weights of rounds below this one are, too, but for those of the rounds `spared`."""
    spared: tuple[RoundNumber, ...] = ()
    because: str = ""
    """For people: by which rule."""
    updates_gone: RoundNumber = 0
    """Updates of rounds below this one are deleted, for certain. From here on the next sweep deletes."""
    models_gone: RoundNumber = 0
    outdated: tuple[RoundNumber, ...] = ()
    """Rounds that were spared, are not any more, and are not yet deleted for certain."""

    def dooms_updates(self, round_number: int) -> bool:
        """Whether updates of this round are deleted, or about to be."""
        return round_number < self.updates_before

    def dooms_weights(self, round_number: int) -> bool:
        """Whether the weights this round made are deleted, or about to be."""
        return round_number < self.models_before and round_number not in self.spared
