"""The silo's YAML file: where bus and store are, where the home is, and the owner's policy. Read once, frozen.

Here lives its form; what the rules in it mean is `policy`'s.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from messages.fields import Name
from messages.health import HealthSettings
from messages.settings import BusSettings, Settings, SettingsPath, StoreSettings
from silo_agent.policy import Policy, Task


class SiloSettings(Settings):
    """`silo.yaml`."""

    silo: Name
    bus: BusSettings
    store: StoreSettings
    home: SettingsPath
    heartbeat: Annotated[float, Field(gt=0, le=3600)] = 15.0
    stalled_after: Annotated[float, Field(gt=0)] | None = None
    """Seconds without progress after which a trainer is not reported alive any more; null: two heartbeats."""
    keep_rounds: Annotated[int, Field(ge=0)] = 3
    """How many directories of published rounds are kept, and as many of failed or declined ones, to be run again."""
    health: HealthSettings | None = None
    """Where to tell that the process is alive; null: nowhere."""
    tasks: Annotated[dict[Name, Task], Field(default_factory=dict)]

    def policy(self) -> Policy:
        """The owner's rules."""
        return Policy.model_construct(tasks=self.tasks)
