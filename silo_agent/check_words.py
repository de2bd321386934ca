"""What `silobus-agent check` says: its rows, and which right, role or setting mends what is broken.

Pure: nothing is tried here. What a right is for comes from `messages/rights.yaml`; that the roles named here are those
that the Azure templates grant is held by a test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from messages import names
from messages.errors import Forbidden, NotFound, SilobusError, Transient
from messages.rights import AGENT, OWN, Right, Verb, table
from messages.schemas import FailureCategory
from messages.settings import BusSettings, StoreSettings
from silo_agent.compute import AzureML

State = Literal["ok", "FAIL", "not tried"]
ROLE_OF_RIGHT: Final = {Right.SEND: "Azure Service Bus Data Sender", Right.LISTEN: "Azure Service Bus Data Receiver"}
SUBMITS: Final = "AzureML Data Scientist"
KEEPS_FILES: Final = "Storage Blob Data Contributor"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was tried and what was found."""

    state: State
    what: str
    found: str
    details: list[str] = field(default_factory=list)
    error: SilobusError | None = None

    @property
    def good(self) -> bool:
        """Whether it works."""
        return self.state == "ok"

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "good": self.good,
            "state": self.state,
            "what": self.what,
            "found": self.found,
            "details": self.details,
        }


def not_tried(what: str, because: str) -> Finding:
    """A row that says nothing of what it is about: something else must be put right first."""
    return Finding("not tried", what, because)


def role_on(silo: str, container: str) -> str:
    """The role that Azure's templates give the agent on a container."""
    return "Storage Blob Data Reader" if container == names.GLOBAL else "Silobus Blob Creator"


def queue_trouble(error: SilobusError, silo: str, queue: str, right: Right) -> str:
    """Why a queue cannot be used, and what mends it."""
    match error:
        case Forbidden():
            return (
                f"no right to do this: the agent needs {right} on queue {queue} ({_why_queue(silo, queue)}). For a "
                f"key, add {right} to its rule on that queue; for an identity, the role {ROLE_OF_RIGHT[right]} on it. "
                f"Or is there no queue {queue}? That looks the same with a key; the operator enrols this silo"
            )
        case NotFound():
            return (
                f"the queue {queue} is not there; ask the operator to enrol this silo under this very name "
                f"(`silo: {silo}` in silo.yaml)"
            )
        case _:
            return str(error)


def container_trouble(error: SilobusError, settings: StoreSettings, silo: str, container: str, verb: Verb) -> str:
    """Why a container cannot be used, and what mends it."""
    match error:
        case Forbidden() if settings.directory is not None:
            return f"no right to do this: let this process {verb} in {settings.directory / container}"
        case Forbidden():
            return (
                f"no right to do this: the agent needs {verb} on container {container} "
                f"({_why_container(silo, container)}). For a signature ({store_setting(settings)}), sign again with "
                f"`{verb[0]}`; for an identity, the role {role_on(silo, container)} on it"
            )
        case NotFound():
            return f"the container {container} is not there; ask the operator to enrol this silo under this very name"
        case _:
            return str(error)


def unreachable_bus(error: SilobusError, settings: BusSettings) -> str:
    """What to look at when nothing can be said to the bus."""
    where = ["bus.namespace" if settings.namespace else f"the endpoint in {bus_setting(settings)}"]
    where += ["bus.ca_file"] if settings.ca_file else []
    where += ["bus.proxy"] if settings.proxy else []
    return f"cannot be reached ({error}); look at {', '.join(where)}, and at the firewall between here and there"


def unreachable_store(error: SilobusError, settings: StoreSettings) -> str:
    """What to look at when nothing can be said to the store."""
    if isinstance(error, Transient) and settings.directory is not None:
        return f"cannot be used ({error}); look at store.directory"
    where = ["store.account_url" if settings.account_url else f"the endpoint in {store_setting(settings)}"]
    where += ["store.ca_file"] if settings.ca_file else []
    return f"cannot be reached ({error}); look at {', '.join(where)}, and at the firewall between here and there"


def bus_setting(settings: BusSettings) -> str:
    """The field that says how the agent gets in, and what it refers to; never what is in there."""
    if settings.connection_string_env is not None:
        return f"bus.connection_string_env ({settings.connection_string_env})"
    if settings.connection_string_file is not None:
        return f"bus.connection_string_file ({settings.connection_string_file})"
    return f"bus.credential ({settings.credential})"


def store_setting(settings: StoreSettings) -> str:
    """As `bus_setting`."""
    for name in ("connection_string_env", "connection_string_file", "sas_env", "sas_file", "credential", "directory"):
        if (value := getattr(settings, name)) is not None:
            return f"store.{name} ({value})"
    return "store.sas_files"


def _why_queue(silo: str, queue: str) -> str:
    rows = table().root[AGENT].queues
    return next(row.why for row in rows if row.queue.replace(OWN, silo) == queue)


def _why_container(silo: str, container: str) -> str:
    rows = table().root[AGENT].containers
    return next(row.why for row in rows if row.container.replace(OWN, silo) == container)


_ENDED: Final = {
    FailureCategory.SCRIPT_ERROR: "the script ended with an error",
    FailureCategory.NOTHING_SHARED: "`share` in the script names no tensor of the model",
    FailureCategory.OUT_OF_MEMORY: "it ran out of memory: give it more, or smaller batches",
    FailureCategory.KILLED: "a signal or a person ended it",
    FailureCategory.TIMEOUT: "it took longer than `timeout`: raise it, or do less in a round",
    FailureCategory.NO_REPORT: "it ended without a result: does the loop over silobus.rounds() submit one?",
    FailureCategory.DATA_MISSING: "a path under `data` is not there",
    FailureCategory.COMPUTE_UNAVAILABLE: "the command cannot be started: look at `command` and `directory`",
}


def ended(category: FailureCategory, azureml: AzureML | None, log: str) -> str:
    """What a task's failing means, and which setting or role mends it. `log` is the owner's log of the try."""
    if azureml is None:
        return _ENDED.get(category, "what it left is no result (docs/training-contract.md)")
    at = "compute.azureml"
    refused = "status 401" in log or "status 403" in log or "authorizationfailed" in log.lower()
    match category:
        case FailureCategory.COMPUTE_UNAVAILABLE if refused and "AzureML does not take it" in log:
            return f"no right to submit jobs: {submits(azureml)}"
        case FailureCategory.COMPUTE_UNAVAILABLE:
            return (
                f"AzureML has no such compute, or it takes no jobs: look at {at}.compute ({azureml.compute}), "
                f"{at}.workspace, {at}.resource_group and {at}.subscription"
            )
        case FailureCategory.IMAGE_FAILED:
            return (
                f"the image cannot be pulled or built: look at {at}.environment "
                f"({azureml.environment.image or azureml.environment.id}); the compute's identity needs the role "
                "AcrPull on its registry"
            )
        case FailureCategory.DATA_MISSING:
            return (
                f"the compute cannot read its inputs: look at {at}.data and {at}.datastore.name "
                f"({azureml.datastore.name}); the compute's identity needs the role {KEEPS_FILES} on container "
                f"{azureml.datastore.container}, and Storage Blob Data Reader on the data"
            )
        case FailureCategory.QUOTA_EXCEEDED:
            return f"there are no such nodes to be had: look at {at}.instance_type and the workspace's quota"
        case _:
            return _ENDED.get(category, "what it left is no result (docs/training-contract.md)")


def submits(azureml: AzureML) -> str:
    """The role without which no job is submitted or looked at."""
    return f"the agent's identity needs the role {SUBMITS} on workspace {azureml.workspace}"
