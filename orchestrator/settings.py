"""The orchestrator's settings: one YAML file, frozen once read (ARCHITECTURE.md, "Settings")."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from messages.fields import Name
from messages.health import HealthSettings
from messages.settings import BusSettings, Settings, SettingsPath, StoreSettings, load_yaml


class OrchestratorSettings(Settings):
    """What an orchestrator is told when it starts."""

    bus: BusSettings
    store: StoreSettings
    silos: Annotated[tuple[Name, ...], Field(min_length=1, max_length=10_000)]
    """Who is enrolled: each has its queues and its container."""
    scratch: SettingsPath
    """A directory on this machine for weights in the making; nothing in it outlives its use."""
    memory_mb: Annotated[int, Field(ge=16, le=1 << 20)] = 256
    """Mebibytes that summing a round may use."""
    max_delivery_count: Annotated[int, Field(ge=3, le=2000)] = 10
    """That of the queues: shortly before it is reached, a message that nobody ever finished is given up as a bug."""
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
