"""The one port: who is let in to whom, and that nobody stands in the way of anybody else."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from servicebus_emulator import door
from servicebus_emulator.door import TlsError, is_local, is_loopback, tls_context
from tests.certificates import Certificates, make_certificates, private_pem
from tests.emulator_process import EmulatorProcess
from tests.unit.emulator.doorway import PATIENTLY, Doorway, doorway, hung_up, until

AMQP = b"AMQP\x00\x01\x00\x00"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how a ClientHello begins


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.ca))


@pytest_asyncio.fixture
async def plain() -> AsyncIterator[Doorway]:
    async with doorway() as running:
        yield running


@pytest_asyncio.fixture
async def made(certificates: Certificates) -> AsyncIterator[Doorway]:
    async with doorway(tls_context(certificates.cert, certificates.key)) as running:
        yield running


async def echoed(made: Doorway, data: bytes = AMQP, **options: Any) -> bytes:
    """What a client of AMQP hears."""
    reader, writer = await made.connect(**options)
    writer.write(data)
    async with asyncio.timeout(PATIENTLY):
        heard = await reader.readexactly(len(data))
    writer.close()
    return heard


# ---------------------------------------------------------------------------------------------- who goes where


@pytest.mark.parametrize("with_tls", [False, True])
async def test_amqp_and_http_share_the_port(made: Doorway, trusting: ssl.SSLContext, with_tls: bool) -> None:
    options: dict[str, Any] = {"ssl": trusting, "server_hostname": "localhost"} if with_tls else {}
    assert await echoed(made, **options) == AMQP
    reader, writer = await made.connect(**options)
    writer.write(b"GET /p HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(PATIENTLY):
        assert b'"path": "/p"' in await reader.read()
    writer.close()
    assert len(made.echoes) == 1


@pytest.mark.parametrize("sent", [b"\x00", b"AMQX", b"GETS", b"\x16\x03\x01\x02", b"hello", b"A\x00", b"get /"])
async def test_what_is_neither_goes_to_amqp_at_once(plain: Doorway, sent: bytes) -> None:
    assert await echoed(plain, sent) == sent


@pytest.mark.parametrize("sent", [AMQP, b"GET /p HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"])
async def test_bytes_may_come_one_by_one(made: Doorway, trusting: ssl.SSLContext, sent: bytes) -> None:
    for options in ({}, {"ssl": trusting, "server_hostname": "localhost"}):
        reader, writer = await made.connect(**options)
        for byte in sent[:6]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        writer.write(sent[6:])
        async with asyncio.timeout(PATIENTLY):
            answer = await reader.readexactly(8)
        assert answer in (AMQP, b"HTTP/1.1")
        writer.close()


async def test_whoever_does_not_trust_the_certificate_costs_one_connection(
    made: Doorway, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        with pytest.raises(ssl.SSLCertVerificationError):
            await made.connect(ssl=ssl.create_default_context(), server_hostname="localhost")
        with pytest.raises(ssl.SSLCertVerificationError):
            await made.connect(ssl=trusting, server_hostname="elsewhere.example")
        await until(lambda: len(caplog.records) == 2)
    assert {record.message for record in caplog.records} == {"door.handshake_failed"}
    assert await echoed(made) == AMQP


@pytest.mark.parametrize("sent", [HELLO + b"\xff" * 600, b"\x16" * 700, b"\x16\x02\x00"], ids=["hello", "noise", "old"])
async def test_a_wrong_handshake_is_one_line_in_the_log(
    made: Doorway, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    reader, writer = await made.connect()
    with caplog.at_level(logging.INFO):
        writer.write(sent)
        writer.write_eof()
        await hung_up(reader)
        await until(lambda: bool(caplog.records))
    assert [record.message for record in caplog.records] == ["door.handshake_failed"]
    assert not any(record.exc_info for record in caplog.records)
    assert caplog.records[0].fields["reason"]  # type: ignore[attr-defined]
    writer.close()


# --------------------------------------------------------------------------------------------- patience


@pytest.mark.parametrize("sent", [b"", b"AM", b"GE", HELLO[:1], HELLO])
async def test_who_says_too_little_is_shown_out(made: Doorway, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(door, "PATIENCE", 0.3)
    reader, writer = await made.connect()
    writer.write(sent)
    assert await hung_up(reader) == b""
    writer.close()
    assert not made.door._undecided
    assert not made.door._guests


async def test_who_says_nothing_inside_tls_is_shown_out_too(
    made: Doorway, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "PATIENCE", 1.0)  # in which TLS begins
    reader, _ = await made.connect(ssl=trusting, server_hostname="localhost")
    assert await hung_up(reader) == b""
    assert not made.door._guests


async def test_who_does_not_end_tls_is_not_waited_for(
    made: Doorway, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "FAREWELL", 0.3)

    def greet() -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", made.port), timeout=PATIENTLY)
        client = trusting.wrap_socket(raw, server_hostname="localhost")
        client.sendall(AMQP)
        assert client.recv(8) == AMQP
        return client

    with await asyncio.to_thread(greet):
        transport = made.echoes[0].transport
        assert transport is not None
        transport.close()
        await asyncio.wait_for(made.echoes[0].is_lost.wait(), 20)


@pytest.fixture
def nothing_of_earlier_tests_is_left() -> None:
    """The SDK leaves sockets behind when its broker is killed while it connects; their garbage is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.usefixtures("nothing_of_earlier_tests_is_left")
@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_the_silent_do_not_keep_others_out(plain: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_UNDECIDED", 3)
    silent = [await plain.connect() for _ in range(8)]
    assert await echoed(plain) == AMQP
    for reader, _ in silent[:5]:
        assert await hung_up(reader) == b""
    assert len(plain.door._undecided) <= 3
    for _, writer in silent:
        writer.close()
    gc.collect()  # a socket that nobody closed would say so now


async def test_hanging_up_without_a_word_is_no_news(plain: Doorway, caplog: pytest.LogCaptureFixture) -> None:
    """Health checks and port scanners do it all day."""
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            _, writer = await plain.connect()
            writer.close()
        assert await echoed(plain) == AMQP
        await until(lambda: not plain.door._undecided)
    assert not caplog.records


async def test_when_there_are_no_more_sockets_it_takes_breath(
    plain: Doorway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "BREATH", 0.2)
    accept, tried = socket.socket.accept, 0

    def fail(listener: socket.socket) -> Any:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fail)
    with caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
        assert await echoed(plain) == AMQP
    assert [record.message for record in caplog.records] == ["door.cannot_accept"]
    assert tried < 10


async def test_a_door_that_is_shut_lets_nobody_in_and_the_silent_out(plain: Doorway) -> None:
    reader, _ = await plain.connect()
    await until(lambda: bool(plain.door._undecided))
    plain.door.shut()
    assert await hung_up(reader) == b""
    with pytest.raises(ConnectionRefusedError):
        await plain.connect()


async def test_half_a_word_does_not_keep_a_door_from_clearing(plain: Doorway) -> None:
    reader, writer = await plain.connect()
    writer.write(b"AM")
    await until(lambda: bool(plain.door._guests))
    plain.door.shut()
    plain.door.clear()
    assert await hung_up(reader) == b""


# ------------------------------------------------------------------------------------- from other machines


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *((address, True) for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1")),
        *((address, False) for address in ("192.0.2.1", "::ffff:192.0.2.1", "fe80::1%eth0", "0.0.0.0", "::")),  # noqa: S104
    ],
)
def test_loopback_is_told_from_the_rest(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_a_host_is_local_when_all_its_addresses_are() -> None:
    assert is_local("localhost")
    assert is_local("127.0.0.1")
    assert not is_local("0.0.0.0")  # noqa: S104
    assert not is_local("")


async def test_plain_from_another_machine_is_refused_and_tls_is_not(
    certificates: Certificates,
    trusting: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(door, "is_loopback", lambda address: False)
    tls = tls_context(certificates.cert, certificates.key)
    async with doorway(tls) as guarded, doorway(tls, plain_anywhere=True) as open_to_all:
        for sent in (AMQP, b"GET / HTTP/1.1\r\n"):
            reader, writer = await guarded.connect()
            writer.write(sent)
            assert await hung_up(reader) == b""
            writer.close()
        _, writer = await guarded.connect()
        writer.close()  # hanging up without a word is no news, wherever it comes from
        assert guarded.echoes == []
        assert await echoed(guarded, ssl=trusting, server_hostname="localhost") == AMQP
        assert await echoed(open_to_all) == AMQP
    assert [record.message for record in caplog.records] == ["door.plain_refused"] * 2


# -------------------------------------------------------------------------------------------- certificates


def test_nothing_older_than_tls_1_2(certificates: Certificates) -> None:
    assert tls_context(certificates.cert, certificates.key).minimum_version is ssl.TLSVersion.TLSv1_2


def test_what_cannot_be_used_is_said_in_one_line(certificates: Certificates, tmp_path: Path) -> None:
    garbage, other, locked = tmp_path / "garbage", tmp_path / "other", tmp_path / "locked"
    garbage.write_text("no certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(private_pem(key))
    locked.write_bytes(private_pem(key, b"secret"))
    for cert, private, said in (
        (tmp_path / "missing", certificates.key, r"--cert .*missing cannot be read: No such file"),
        (certificates.cert, tmp_path / "missing", r"--key .*missing cannot be read: No such file"),
        (certificates.cert, tmp_path, r"--key .* cannot be read: Is a directory"),
        (garbage, certificates.key, r"--cert .*garbage and --key .* cannot be used"),
        (certificates.cert, garbage, r"cannot be used"),
        (certificates.cert, other, r"cannot be used \(KEY_VALUES_MISMATCH\): .*the certificate's own"),
        (certificates.cert, locked, r"cannot be used .*without a password"),
    ):
        with pytest.raises(TlsError, match=said) as caught:
            tls_context(cert, private)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- anything


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[EmulatorProcess]:
    made = EmulatorProcess(tmp_path_factory.mktemp("emulator"), ["q"], options=certificates.options)
    with made as running:
        yield running


openings = st.sampled_from(
    [
        b"",
        b"AMQP",
        AMQP,
        HELLO,
        b"\x16\x03",
        b"\x80\x2e\x01",
        b"GET /",
        b"POST / HTTP/1.1\r\nHost: h\r\n",
        b"PRI * HTTP/2.0\r\n",
    ]
)


@settings(max_examples=150, deadline=None)
@given(opening=openings, rest=st.binary(max_size=200), cut=st.integers(0, 20))
@example(opening=b"\x16", rest=b"", cut=0)
def test_whatever_comes_first_the_next_one_is_served(
    emulator: EmulatorProcess, opening: bytes, rest: bytes, cut: int
) -> None:
    sent = opening + rest
    client = socket.create_connection(("127.0.0.1", emulator.port), timeout=PATIENTLY)
    with client, contextlib.suppress(ConnectionError):  # but a TimeoutError would mean that it holds on
        client.sendall(sent[:cut])
        client.sendall(sent[cut:])
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)  # fails when the other side was faster
        while client.recv(65536):
            pass
    with socket.create_connection(("127.0.0.1", emulator.port), timeout=PATIENTLY) as client:
        client.sendall(AMQP)
        assert client.recv(8) == AMQP


def test_nothing_above_was_a_bug(emulator: EmulatorProcess) -> None:
    log = emulator.log_file.read_text()
    assert "Traceback" not in log
    assert "bug" not in log
