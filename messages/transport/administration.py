"""How many messages are in each queue, as Service Bus itself counts them: its administration interface, over HTTPS.

Besides `servicebus` and `servicebus_links` the only file that touches its SDK, and the only one that administers; it
only looks. Whoever may not look, or speaks to something without this interface, gets None and can still peek. The
SDK's exceptions end here, unsaid: their words may hold tokens.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from azure.core.pipeline.transport import AioHttpTransport
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from pydantic import SecretStr

from messages.settings import BusSettings, ProxySettings, SettingsError
from messages.transport.credentials import open_credential

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in one queue. Active messages are those that can be received, or are being handled, or are deferred."""

    active: int
    scheduled: int
    dead_lettered: int


async def counts(settings: BusSettings) -> dict[str, Counts] | None:
    """By queue name in lower case; None where that cannot be had. Raises SettingsError, as opening the bus does."""
    async with contextlib.AsyncExitStack() as stack:
        client = await _open(settings, stack)
        try:
            found = {
                queue.name.lower(): Counts(
                    active=queue.active_message_count or 0,
                    scheduled=queue.scheduled_message_count or 0,
                    dead_lettered=queue.dead_letter_message_count or 0,
                )
                async for queue in client.list_queues_runtime_properties()
            }
            return found or None  # where there are no queues, peeking says so of each
        except Exception:  # noqa: BLE001  # this is where the SDK's exceptions end; peeking will say what is wrong
            return None


async def _open(settings: BusSettings, stack: contextlib.AsyncExitStack) -> ServiceBusAdministrationClient:
    options = _options(settings)
    secret = settings.connection_string()
    if secret is not None:
        if _is_emulator(secret):
            options["transport"] = PlainTransport(use_env_settings=False, **options)
        try:
            client = ServiceBusAdministrationClient.from_connection_string(secret.get_secret_value(), **options)
        except ValueError:
            raise SettingsError("bus: the connection string is malformed; copy it again from the portal") from None
    elif settings.namespace is not None and settings.credential is not None:
        credential = await stack.enter_async_context(open_credential(settings.credential))
        client = ServiceBusAdministrationClient(settings.namespace, credential, **options)
    else:
        raise SettingsError("bus: neither a connection string nor a namespace and a credential are given")
    return await stack.enter_async_context(client)


class PlainTransport(AioHttpTransport):  # type: ignore[misc]  # the SDK loads it when asked, so its type is not known
    """HTTP without TLS, for emulators: the SDK writes https into every address, whatever the connection string says."""

    async def send(self, request: Any, **options: Any) -> Any:
        """One request."""
        request.url = request.url.replace("https://", "http://", 1)  # a request that is tried again has it already
        return await super().send(request, **options)


def _is_emulator(connection_string: SecretStr) -> bool:
    """Whether the SDK would speak AMQP without TLS for it."""
    parts = (part.partition("=") for part in connection_string.get_secret_value().split(";"))
    return any(key.strip().lower() == "usedevelopmentemulator" and value == "true" for key, _, value in parts)


def _options(settings: BusSettings) -> dict[str, Any]:
    """One try, which does not hang: there is another way to count."""
    options: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "user_agent": "silobus",
        "logging_enable": False,
    }
    if settings.ca_file is not None:
        options["connection_verify"] = str(settings.ca_file)
    if settings.proxy is not None:
        options["proxies"] = {"https": _url(settings.proxy)}
    return options


def _url(proxy: ProxySettings) -> str:
    user, password = proxy.user(), proxy.password()
    known = "" if user is None else quote(user, safe="")
    if known and password is not None:
        known += ":" + quote(password.get_secret_value(), safe="")
    return f"http://{known}{'@' if known else ''}{proxy.host}:{proxy.port}"
