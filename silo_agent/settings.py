"""The silo's YAML file: where bus and store are, where the home is, and the owner's policy. Read once, frozen.

Here lives its form; what the rules in it mean is `policy`'s.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

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
    """Seconds without progress after which a trainer is reported as stalled; null: two heartbeats."""
    keep_rounds: Annotated[int, Field(ge=0)] = 3
    """How many directories of published rounds are kept, and as many of failed or declined ones, to be run again."""
    health: HealthSettings | None = None
    """Where to tell that the process is alive; null: nowhere."""
    tasks: Annotated[dict[Name, Task], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _keeps_jobs_off_the_exchange(self) -> Self:
        for name, task in self.tasks.items():
            azureml = task.compute.azureml
            if azureml is not None and _place(azureml.datastore.store) == _place(self.store):
                where = f"tasks.{name}.compute.azureml.datastore.store"
                raise ValueError(
                    f"{where}: is the storage that silos exchange through; use an account of the silo's own"
                )
        return self

    def policy(self) -> Policy:
        """The owner's rules."""
        return Policy.model_construct(tasks=self.tasks)


def _place(store: StoreSettings) -> str:
    """Where it is, as far as the file says; by reference, the name of what holds the connection string."""
    url = store.account_url and store.account_url.rstrip("/").lower()
    return str(store.directory or url or store.connection_string_env or store.connection_string_file)
