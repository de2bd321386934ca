"""AMQP over WebSocket as clients of all kinds see it: aiohttp, the unmodified SDK, and Silobus' own bus.

The SDK goes to port 443 unless an endpoint of its own is named, and Silobus has no setting for that: where Silobus'
settings are tried without a proxy, that constant of the SDK is the emulator's port.
"""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from azure.servicebus import ServiceBusClient as SyncClient
from azure.servicebus import ServiceBusMessage, TransportType
from azure.servicebus._pyamqp.aio import _connection_async
from azure.servicebus.aio import ServiceBusClient

from messages.codec import decode, encode
from messages.errors import Transient
from messages.experiments import StartExperiment
from messages.ports import Bus, Outgoing
from messages.settings import BusSettings
from messages.transport.connect import open_bus
from tests.certificates import NAMESPACE, Certificates, make_certificates
from tests.emulator_process import EmulatorProcess

AMQP = b"AMQP\x00\x01\x00\x00"
PATIENTLY = 10.0
KEYS = f"Endpoint=sb://{NAMESPACE};SharedAccessKeyName=any;SharedAccessKey=any"
QUEUES = ["aiohttp", "ws", "wss", "sync", "large", "direct", "proxied"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[EmulatorProcess]:
    with EmulatorProcess(tmp_path_factory.mktemp("emulator"), QUEUES, options=certificates.options) as running:
        yield running
    log = running.log_file.read_text()
    assert "bug" not in log
    assert "Traceback" not in log


def options_of(emulator: EmulatorProcess, certificates: Certificates, *, tls: bool) -> dict[str, Any]:
    """For a client of the SDK, with its connection string first."""
    return {
        "conn_str": KEYS if tls else emulator.connection_string,
        "transport_type": TransportType.AmqpOverWebsocket,
        "custom_endpoint_address": f"sb://localhost:{emulator.port}",
        "connection_verify": str(certificates.ca),
        "retry_total": 0,
    }


# ------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_ordinary_client_exchanges_headers(
    emulator: EmulatorProcess, certificates: Certificates, scheme: str
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    url = f"{scheme}://localhost:{emulator.port}/$servicebus/websocket"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=["AMQPWSB10"], ssl=context) as client,
    ):
        await client.send_bytes(AMQP)
        assert await client.receive_bytes(timeout=PATIENTLY) == AMQP
        await client.send_bytes(b"\x00\x00\x00\x00nonsense")
        assert b"amqp:connection:framing-error" in await client.receive_bytes(timeout=PATIENTLY)
        assert (await client.receive(timeout=PATIENTLY)).type is aiohttp.WSMsgType.CLOSE
        assert client.close_code == 1000


async def test_an_ordinary_client_of_http_finds_nothing_where_nothing_is(
    emulator: EmulatorProcess, certificates: Certificates
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    async with aiohttp.ClientSession() as session:
        for _ in range(2):  # the second time over the same connection
            async with session.get(f"https://localhost:{emulator.port}/$nowhere", ssl=context) as answer:
                assert answer.status == 404


@pytest.mark.parametrize("tls", [False, True])
async def test_the_sdk_sends_and_receives(emulator: EmulatorProcess, certificates: Certificates, tls: bool) -> None:
    queue = "wss" if tls else "ws"
    client = ServiceBusClient.from_connection_string(**options_of(emulator, certificates, tls=tls))
    async with client, client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        await sender.send_messages([ServiceBusMessage(f"m{number}") for number in range(20)])
        heard: list[str] = []
        while len(heard) < 20:
            for message in await receiver.receive_messages(max_message_count=20, max_wait_time=PATIENTLY):
                heard.append(str(message))
                await receiver.complete_message(message)
        assert heard == [f"m{number}" for number in range(20)]


async def test_many_large_messages_at_once_are_not_too_much_for_the_client(
    emulator: EmulatorProcess, certificates: Certificates
) -> None:
    """What waits for one receiver leaves in one turn; a WebSocket message of that size would be refused."""
    client = ServiceBusClient.from_connection_string(**options_of(emulator, certificates, tls=False))
    async with client, client.get_queue_sender("large") as sender:
        for number in range(8):
            await sender.send_messages(ServiceBusMessage(bytes([number]) * 900_000))
        heard: list[int] = []
        async with client.get_queue_receiver("large", prefetch_count=8) as receiver:
            while len(heard) < 8:
                for message in await receiver.receive_messages(max_message_count=8, max_wait_time=PATIENTLY):
                    heard.append(b"".join(message.body)[899_999])
                    await receiver.complete_message(message)
    assert heard == list(range(8))


def test_the_synchronous_sdk_sends_and_receives(emulator: EmulatorProcess, certificates: Certificates) -> None:
    pytest.importorskip("websocket", reason="the SDK wants websocket-client for this")
    client = SyncClient.from_connection_string(**options_of(emulator, certificates, tls=True))
    with client, client.get_queue_sender("sync") as sender, client.get_queue_receiver("sync") as receiver:
        sender.send_messages(ServiceBusMessage("x"))
        (message,) = receiver.receive_messages(max_wait_time=PATIENTLY)
        assert str(message) == "x"
        receiver.complete_message(message)


# ------------------------------------------------------------------------------------------------ Silobus' own bus


@dataclass
class Proxy:
    """An HTTP proxy (RFC 9110, 9.3.6) that brings everybody to one port, whatever they ask for."""

    target: int
    port: int = 0
    asked: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.asked.append(request)
        self.credentials.append(base64.b64decode(fields.get("proxy-authorization", "").removeprefix("Basic ")).decode())
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


async def carry_an_experiment(bus: Bus, queue: str) -> None:
    """There and back."""
    start = StartExperiment(experiment="over-websocket", task="digits", rounds=3)
    try:
        await bus.send(queue, Outgoing(body=encode(start), message_id="m-1", subject=start.kind))
        delivery = await bus.receive(queue, wait=PATIENTLY)
        assert delivery is not None
        assert decode(delivery.body, StartExperiment) == start
        await bus.renew(delivery)
        await bus.complete(delivery)
        assert await bus.receive(queue, wait=0.2) is None
    finally:
        await bus.close()


async def test_an_experiment_travels_over_websocket(
    emulator: EmulatorProcess, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS", KEYS.replace(NAMESPACE, "localhost"))
    monkeypatch.setattr(_connection_async, "WEBSOCKET_PORT", emulator.port)
    settings = BusSettings(connection_string_env="BUS", transport="amqp-over-websocket", ca_file=certificates.ca)
    await carry_an_experiment(open_bus(settings), "direct")


@pytest.mark.parametrize(
    ("scheme", "user", "password"),
    [("", None, None), ("http://", None, None), ("", "someone", "some thing: else"), ("", "someone", None)],
)
async def test_an_experiment_travels_through_a_proxy(
    emulator: EmulatorProcess,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    *,
    scheme: str,
    user: str | None,
    password: str | None,
) -> None:
    monkeypatch.setenv("BUS", KEYS)
    async with proxy_to(emulator.port) as proxy:
        way: dict[str, Any] = {"host": f"{scheme}127.0.0.1", "port": proxy.port}
        for name, value in (("user", user), ("password", password)):
            if value is not None:
                monkeypatch.setenv(f"PROXY_{name.upper()}", value)
                way[f"{name}_env"] = f"PROXY_{name.upper()}"
        settings = BusSettings.model_validate(
            {"connection_string_env": "BUS", "proxy": way, "ca_file": str(certificates.ca)}
        )
        await carry_an_experiment(open_bus(settings), "proxied")
    assert {line.split()[1] for line in proxy.asked} == {f"{NAMESPACE}:443"}
    assert set(proxy.credentials) == {f"{user}:{password or ''}" if user else ""}


async def test_an_authority_that_was_not_named_is_not_trusted(
    emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS", KEYS)
    async with proxy_to(emulator.port) as proxy:
        way = {"host": "127.0.0.1", "port": proxy.port}
        bus = open_bus(BusSettings.model_validate({"connection_string_env": "BUS", "proxy": way}))
        with pytest.raises(Transient, match="cannot send to 'proxied'"):
            await carry_an_experiment(bus, "proxied")
    assert proxy.asked, "it got as far as the proxy"
