"""Where a task trains: on the agent's machine, or as jobs on a compute of Azure Machine Learning (docs/azureml.md).

CORE: pure. Here lives the form of the owner's `compute` section alone: what is in it is checked as far as it can be
without asking anybody. No secret stands here, and nothing is opened, sent or run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from messages import names
from messages.fields import ParameterName, Sha256
from messages.settings import Credential, Settings, StoreSettings

ARM: Final = r"/subscriptions/[^/\s]+/resourceGroups/[^/\s]+/providers/Microsoft\.MachineLearningServices"
DATASTORE_NAME: Final = r"^[A-Za-z0-9_]{1,255}$"


class Image(Settings):
    """What a job runs in: an image named by its digest, or an environment registered in the workspace, by its id."""

    image: Annotated[str, Field(pattern=r"^[a-z0-9][^\s@]*@sha256:[0-9a-f]{64}$")] | None = None
    id: Annotated[str, Field(pattern=rf"^{ARM}/(workspaces|registries)/[^/\s]+/environments/[^/\s]+/versions/[^/\s]+$")] | None = None  # fmt: skip  # noqa: E501

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.image is None) == (self.id is None):
            raise ValueError("give either `image` (name@sha256:…) or `id` (/subscriptions/…/environments/…/versions/…)")
        return self

    @property
    def digest(self) -> Sha256 | None:
        """The image's, where it is known here."""
        return self.image.rpartition(":")[2] if self.image else None


class Input(Settings):
    """Data that a job reads: a path on a datastore, or a version of a data asset."""

    path: Annotated[str, Field(pattern=rf"^(azureml://datastores/\w+/paths/\S+|{ARM}/workspaces/[^/\s]+/data/[^/\s]+/versions/[^/\s]+)$")]  # fmt: skip  # noqa: E501
    type: Literal["uri_file", "uri_folder", "mltable"] = "uri_folder"
    mode: Literal["ro_mount", "download"] = "ro_mount"


class PyTorch(Settings):
    """One process per GPU, on every instance; RANK, WORLD_SIZE and the like are set by AzureML."""

    processes_per_instance: Annotated[int, Field(ge=1, le=64)] = 1


class Distribution(Settings):
    """Several processes that train one model."""

    pytorch: PyTorch


class Datastore(Settings):
    """The silo's own storage, as AzureML and the agent see it: rounds go there, and their results come from there."""

    name: Annotated[str, Field(pattern=DATASTORE_NAME)]
    """As it is registered in the workspace."""
    container: Annotated[str, Field(pattern=r"^[a-z0-9](-?[a-z0-9]){2,62}$")]
    folder: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=200)] = "silobus"
    store: StoreSettings
    """How the agent reaches the storage account; AzureML's compute has its own way, which is the datastore's."""

    @model_validator(mode="after")
    def _is_not_the_exchange(self) -> Self:
        if self.container == names.GLOBAL or self.container.startswith(names.updates_of("x").removesuffix("x")):
            raise ValueError("container: is one that silos exchange through; use a container of the silo's own")
        return self


class AzureML(Settings):
    """A task's jobs."""

    subscription: Annotated[str, Field(pattern=r"^[0-9a-fA-F-]{36}$")]
    resource_group: Annotated[str, Field(pattern=r"^[\w.()-]{1,90}$")]
    workspace: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{2,32}$")]
    credential: Credential
    cloud: Literal["AzureCloud", "AzureUSGovernment", "AzureChinaCloud"] = "AzureCloud"
    resource_manager: Annotated[str, Field(pattern=r"^https?://[^\s/?#]+$")] | None = None
    """Azure Resource Manager elsewhere than in these clouds."""
    compute: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{1,31}$")]
    """A cluster, or Kubernetes attached through Arc; its name in the workspace."""
    environment: Image
    datastore: Datastore
    data: Annotated[dict[ParameterName, Input], Field(default_factory=dict)]
    instance_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    instances: Annotated[int, Field(ge=1, le=100)] = 1
    distribution: Distribution | None = None
    output: Literal["mount", "upload"] = "mount"
    """`upload`: nothing is seen of the result until the job has ended, its progress neither."""
    node_hours: Annotated[float, Field(ge=0)]
    """What the task's jobs may cost, over all experiments, for ever: instances times hours of running."""
    lost: Annotated[int, Field(ge=0, le=20)] = 2
    """How often in a try a job begins again that lost its node."""
    poll: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Seconds between two looks at a job."""

    @model_validator(mode="after")
    def _token_is_not_sent_in_the_clear(self) -> Self:
        plain = self.resource_manager is not None and self.resource_manager.startswith("http:")
        if plain and not re.match(r"^http://(127\.0\.0\.1|localhost)(:\d+)?$", str(self.resource_manager)):
            raise ValueError(
                "resource_manager: is http, over which the agent's token would travel in the clear; use https"
            )
        return self


@dataclass(frozen=True, slots=True)
class Local:
    """Processes on the agent's machine."""


class Compute(Settings):
    """The `compute` section of a task; left out, it is the agent's machine."""

    azureml: AzureML | None = None

    @property
    def where(self) -> Local | AzureML:
        """The one of the two that it is."""
        return Local() if self.azureml is None else self.azureml
