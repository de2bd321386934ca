"""A page in a browser that calls this machine by a name of its own is not answered (DNS rebinding)."""

import ssl
from pathlib import Path

import pytest

from servicebus_emulator.door import tls_context
from servicebus_emulator.hosts import host_of, is_address, own_names
from tests.certificates import make_certificates
from tests.unit.emulator.doorway import doorway

UPGRADE = (
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: AMQPWSB10\r\n"
)
NAMES = own_names("bus.local")


def request(host: str, *, upgrade: bool = False) -> bytes:
    path, more = ("$servicebus/websocket", UPGRADE) if upgrade else ("p", b"")
    connection = "Upgrade" if upgrade else "close"
    return f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n".encode() + more + b"\r\n"


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("LocalHost:80", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]:5673", "::1"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("evil.example:5673", "evil.example"),
        ("", ""),
    ],
)
def test_a_host_is_read_without_its_port(header: str, host: str) -> None:
    assert host_of(header) == host


def test_names_are_those_that_nobody_else_can_have() -> None:
    assert own_names("BUS.local") == {"localhost", "bus.local"}
    assert own_names("") == {"localhost"}
    assert is_address("10.1.2.3")
    assert is_address("::1")
    assert not any(map(is_address, ("", "localhost", "10.1.2.3.nip.io", "127.0.0.1.evil.example", "0x7f000001")))


@pytest.mark.parametrize("host", ["localhost:5673", "127.0.0.1:5673", "[::1]:5673", "10.0.0.7", "BUS.local"])
async def test_its_own_names_and_addresses_are_answered(host: str) -> None:
    async with doorway(hosts=NAMES) as made:
        assert (await made.converse(request(host))).startswith(b"HTTP/1.1 200 ")
        reader, writer = await made.connect()
        writer.write(request(host, upgrade=True))
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        writer.close()


@pytest.mark.parametrize("host", ["evil.example:5673", "localhost.evil.example", "127.0.0.1.evil.example", ""])
@pytest.mark.parametrize("upgrade", [False, True])
async def test_another_name_is_refused_and_told_what_to_do(host: str, upgrade: bool) -> None:
    async with doorway(hosts=NAMES) as made:
        answered = await made.converse(request(host, upgrade=upgrade))
        assert answered.startswith(b"HTTP/1.1 421 ")
        assert b"AuthorizationRules" in answered
        assert not made.site.asked
        assert not made.echoes


async def test_where_keys_are_asked_for_names_do_not_matter() -> None:
    async with doorway() as made:
        assert (await made.converse(request("any.example"))).startswith(b"HTTP/1.1 200 ")


async def test_inside_tls_the_certificate_has_settled_the_name(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    async with doorway(tls_context(certificates.cert, certificates.key), hosts=NAMES) as made:
        context = ssl.create_default_context(cafile=str(certificates.ca))
        reader, writer = await made.connect(ssl=context, server_hostname="localhost")
        writer.write(request("emulator.servicebus.windows.net"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
