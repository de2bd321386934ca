"""A workspace through azure-ai-ml. The only file that imports it: when the first job is asked for, and in a thread.

The SDK blocks, so every call runs in a thread of its own; what it raises becomes Transient or Rejected here. Nothing is
decided here, and no text of the SDK's is logged: Rejected carries it to the owner's log of the try.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar, final
from urllib.parse import quote, urlsplit

from messages.errors import Transient
from silo_agent.compute import AzureML
from silo_agent.runners.azureml_workspace import Order, Rejected, Seen, State, Story, Workspace

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.credentials import AccessToken
    from azure.core.credentials_async import AsyncTokenCredential

T = TypeVar("T")

_STATES: Final = {
    "Running": State.RUNNING,
    "Finalizing": State.RUNNING,
    "NotResponding": State.SILENT,
    "Paused": State.SILENT,
    "Unknown": State.SILENT,
    "CancelRequested": State.SILENT,
    "Completed": State.COMPLETED,
    "Failed": State.FAILED,
    "Canceled": State.CANCELED,
}
"""Every other state is before a job's running."""
_HISTORY_WAITS: Final = (0.0, 1.0, 4.0)
_HISTORY: Final = "https://ml.azure.com/.default"
_LOGGERS: Final = ("azure.ai.ml", "azure.ai.ml._telemetry")
"""The SDK's, with all that is below them but for what has a handler of its own."""


def is_installed() -> bool:
    """Whether the SDK is there; it is not imported."""
    try:
        return find_spec("azure.ai.ml") is not None
    except ModuleNotFoundError:  # nor is what it is in
        return False


@final
class SdkWorkspace(Workspace):
    """One workspace. It closes its credential."""

    def __init__(self, azureml: AzureML, credential: AsyncTokenCredential) -> None:
        self._azureml = azureml
        self._credential = credential
        self._client: MLClient | None = None
        self._one_call = asyncio.Lock()

    async def get(self, name: str) -> Seen | None:
        try:
            return await self._call(lambda client: _seen(client.jobs.get(name)))
        except Rejected as no:
            if no.code == "404":
                return None
            raise

    async def submit(self, order: Order) -> Seen:
        def put(client: MLClient) -> Seen:
            from azure.core.exceptions import ResourceExistsError

            try:
                return _seen(client.jobs.create_or_update(_command(order)))
            except ResourceExistsError:
                return _seen(client.jobs.get(order.name))

        return await self._call(put)

    async def cancel(self, name: str) -> None:
        try:
            await self._call(lambda client: client.jobs.begin_cancel(name))
        except Rejected as no:
            if no.code not in ("404", "400", "409"):  # it is not there, or has ended
                raise

    async def story(self, seen: Seen) -> Story:
        for wait in _HISTORY_WAITS:
            await asyncio.sleep(wait)
            try:
                token = await self._credential.get_token(self._history_scope)
                return await asyncio.to_thread(self._read_history, seen, token.token)
            except Exception:  # noqa: BLE001, S112  # it only adds to what is known, and its text may hold anything
                continue
        return Story()

    async def close(self) -> None:
        await self._credential.close()

    @property
    def _history_scope(self) -> str:
        return f"{self._azureml.resource_manager}/.default" if self._azureml.resource_manager else _HISTORY

    def _read_history(self, seen: Seen, token: str) -> Story:
        """As the SDK itself does it, whose way there asks for more rights than a job needs."""
        at = self._azureml
        host = urlsplit(seen.tracking).netloc
        scheme = urlsplit(at.resource_manager).scheme if at.resource_manager else "https"
        path = (
            f"/history/v1.0/subscriptions/{at.subscription}/resourceGroups/{quote(at.resource_group)}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{quote(at.workspace)}/runs/{quote(seen.name)}/details"
        )
        address, headers = f"{scheme}://{host}{path}", {"Authorization": f"Bearer {token}"}
        asked = urllib.request.Request(address, headers=headers)  # noqa: S310
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310  # https, or loopback
            told = json.load(answer)
        error = (told.get("error") or {}).get("error") or {}
        return Story(
            code=" ".join(_codes(error)),
            message=str(error.get("message") or ""),
            started=_time(told.get("startTimeUtc")),
            ended=_time(told.get("endTimeUtc")),
        )

    async def _call(self, work: Callable[[MLClient], T]) -> T:
        async with self._one_call:  # nobody says that the client may be used by several threads
            if self._client is None:
                loop = asyncio.get_running_loop()
                self._client = await asyncio.to_thread(_connect, self._azureml, self._credential, loop)
            return await asyncio.to_thread(_in_our_words, work, self._client)


class _FromLoop:
    """A credential of the event loop's, for the SDK's threads."""

    def __init__(self, credential: AsyncTokenCredential, loop: asyncio.AbstractEventLoop) -> None:
        self._credential = credential
        self._loop = loop

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return asyncio.run_coroutine_threadsafe(self._credential.get_token(*scopes), self._loop).result(120)


def _connect(azureml: AzureML, credential: AsyncTokenCredential, loop: asyncio.AbstractEventLoop) -> MLClient:
    from azure.ai.ml import MLClient

    _silence()  # before anything can be said, and after what making a client changes
    cloud: dict[str, Any] = {"cloud": azureml.cloud}
    if (manager := azureml.resource_manager) is not None:
        keys = ("azure_portal", "resource_manager", "active_directory", "aml_resource_id", "storage_endpoint")
        cloud = {
            "cloud": manager,  # a name: what is said of a cloud once holds for the whole process
            "cloud_metadata": dict.fromkeys((*keys, "registry_discovery_endpoint"), manager),
        }
    client = MLClient(
        _FromLoop(credential, loop),
        azureml.subscription,
        azureml.resource_group,
        azureml.workspace,
        enable_telemetry=False,
        show_progress=False,
        retry_total=2,
        **cloud,
    )
    _silence()
    return client


def _silence() -> None:
    """The SDK logs what it is answered, by handlers of its own, some of them of single modules. None of it goes on.

    No logger of it is ever without a handler: Python prints what nobody handles. And a client that is made while
    another is at work lets the telemetry's logger speak again, until this is called.
    """
    for name in (*_LOGGERS, *list(logging.root.manager.loggerDict)):
        logger = logging.getLogger(name)
        if name in _LOGGERS or (name.startswith(f"{_LOGGERS[0]}.") and logger.handlers):
            logger.handlers[:] = [logging.NullHandler()]
            logger.setLevel(logging.CRITICAL + 1)
            logger.propagate = False


def _command(order: Order) -> Any:
    from azure.ai.ml import Input, Output, PyTorchDistribution, command
    from azure.ai.ml.entities import Environment

    azureml = order.azureml
    data = {f"data_{name}": Input(type=i.type, path=i.path, mode=i.mode) for name, i in azureml.data.items()}
    folders = {name: Input(type="uri_folder", path=uri, mode="download") for name, uri in order.folders.items()}
    mode = "rw_mount" if azureml.output == "mount" else "upload"
    pytorch = azureml.distribution.pytorch if azureml.distribution else None
    image = azureml.environment.image
    return command(
        name=order.name,
        experiment_name="silobus",
        display_name=order.display,
        command=order.command,
        environment=azureml.environment.id if image is None else Environment(image=image),
        environment_variables=order.environment,
        inputs={**data, **folders},
        outputs={"result": Output(type="uri_folder", path=order.result, mode=mode)},
        compute=azureml.compute,
        instance_count=azureml.instances,
        instance_type=azureml.instance_type,
        distribution=PyTorchDistribution(process_count_per_instance=pytorch.processes_per_instance)
        if pytorch
        else None,
        timeout=order.timeout,
    )


def _seen(job: Any) -> Seen:
    services = job.services or {}
    studio, tracking = services.get("Studio"), services.get("Tracking")
    return Seen(
        name=str(job.name),
        state=_STATES.get(str(getattr(job.status, "value", job.status)), State.WAITING),
        studio=str(getattr(studio, "endpoint", "") or ""),
        tracking=str(getattr(tracking, "endpoint", "") or ""),
    )


def _in_our_words(work: Callable[[MLClient], T], client: MLClient) -> T:
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError, HttpResponseError

    try:
        return work(client)
    except HttpResponseError as error:
        status = error.status_code
        if status is None or status in (408, 429) or status >= 500:
            raise Transient(f"AzureML: status {status or 'none'}") from None
        told = error.error
        raise Rejected(status, str(status), f"{getattr(told, 'code', '')}: {error.message}") from None
    except MlException as error:
        raise Rejected(0, type(error).__name__, str(error)) from None
    except (AzureError, OSError, TimeoutError) as error:
        raise Transient(f"AzureML: {type(error).__name__}") from None


def _codes(error: dict[str, Any]) -> list[str]:
    codes: list[str] = []
    while isinstance(error, dict) and len(codes) < 10:
        codes.append(str(error.get("code") or ""))
        error = error.get("innerError") or {}
        if not error:
            break
    return codes


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None
    except ValueError:
        return None
