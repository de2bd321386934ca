"""The orchestrator's settings: one YAML file, frozen once read (ARCHITECTURE.md, "Settings")."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from messages.fields import Name
from messages.health import HealthSettings
from messages.settings import BusSettings, Settings, SettingsPath, StoreSettings, load_yaml


class RetentionSettings(Settings):
    """What is kept of a run, and how long. Never deleted: what a round in progress needs, the last and the best
    weights, the documents in `state`, and anything of a run that an operator holds.
    """

    updates: Annotated[int, Field(ge=0, le=100_000)] | None = 10
    """Rounds whose updates are kept: the last so many that are over; null: all, while the run goes on."""
    models: Annotated[int, Field(ge=1, le=100_000)] | None = 20
    """Rounds whose global weights are kept. Replaying a round takes those of the round before."""
    days: Annotated[float, Field(ge=0, le=3650)] | None = 30.0
    """Days after a run's end until all its updates go, and all its weights but the last and the best; null: never."""


class OrchestratorSettings(Settings):
    """What an orchestrator is told when it starts."""

    bus: BusSettings
    store: StoreSettings
    silos: Annotated[tuple[Name, ...], Field(min_length=1, max_length=10_000)]
    """Who is enrolled: each has its queues and its container."""
    scratch: SettingsPath
    """A directory on this machine for weights in the making; nothing in it outlives its use."""
    memory_budget: Annotated[int, Field(ge=32, le=1 << 20)] = 256
    """Mebibytes that summing a round may use besides the program itself, for any size of model and number of silos."""
    max_delivery_count: Annotated[int, Field(ge=3, le=2000)] = 10
    """That of the queues: shortly before it is reached, a message makes room for a new one, or is given up as a bug."""
    retention: RetentionSettings = RetentionSettings()
    """What is deleted, and when."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    health: HealthSettings | None = None
    """Where to tell that the process is alive; null: nowhere."""

    @model_validator(mode="after")
    def _enrols_each_once(self) -> Self:
        if len(set(self.silos)) != len(self.silos):
            raise ValueError("silos: a silo is listed twice")
        return self


def load(path: Path) -> OrchestratorSettings:
    """Reads the file. Raises SettingsError, saying what to change."""
    return load_yaml(path, OrchestratorSettings)
