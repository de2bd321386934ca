"""HTTP on the port of AMQP: every answer in order, after the disk, and nobody holds anything for ever."""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from servicebus_emulator import web
from tests.unit.emulator.doorway import PATIENTLY, Doorway, doorway, hung_up, until

CLOSE = b"Host: x\r\nConnection: close\r\n\r\n"


@pytest_asyncio.fixture
async def made() -> AsyncIterator[Doorway]:
    async with doorway() as running:
        yield running


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    async with asyncio.timeout(PATIENTLY):
        raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode().split("\r\n")[:-2]
    return int(first.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    status, headers = await head(reader)
    async with asyncio.timeout(PATIENTLY):
        return status, headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def test_a_request_reaches_the_site_and_its_answer_the_client(made: Doorway) -> None:
    reader, writer = await made.connect()
    writer.write(
        b"POST /a%20b/%C3%BC?x=1&y=a+b&z= HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\nxyz"
    )
    status, headers, body = await answer(reader)
    told = {"method": "POST", "path": "/a b/ü", "query": {"x": "1", "y": "a b", "z": ""}, "body": "xyz"}
    assert (status, json.loads(body)) == (200, told)
    assert headers["content-type"] == "application/json"
    assert headers["x-site"] == "yes"
    assert "gmt" in headers["date"].lower()
    assert made.site.asked[0].headers["x-a"] == "1, 2"
    writer.close()


async def test_a_request_may_name_the_host_before_the_path(made: Doorway) -> None:
    answered = await made.converse(b"GET http://h:1/p?q=1 HTTP/1.1\r\n" + CLOSE)
    assert b'"path": "/p", "query": {"q": "1"}' in answered


async def test_a_connection_serves_one_request_after_the_other(made: Doorway) -> None:
    reader, writer = await made.connect()
    for number in range(3):
        writer.write(
            b"PUT /%d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n" % number
        )
        status, _, body = await answer(reader)
        assert status == 200
        assert json.loads(body)["path"] == f"/{number}"
        assert json.loads(body)["body"] == "abc"
    writer.close()


async def test_requests_in_one_piece_are_answered_in_order(made: Doorway) -> None:
    reader, writer = await made.connect()
    writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(3000)))
    for number in range(3000):
        assert json.loads((await answer(reader))[2])["path"] == f"/{number}"
    writer.close()


async def test_nothing_is_answered_before_it_is_on_disk(made: Doorway) -> None:
    made.site.is_slow = True
    reader, writer = await made.connect()
    writer.write(b"PUT /1 HTTP/1.1\r\nHost: h\r\n\r\nPUT /2 HTTP/1.1\r\nHost: h\r\n\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    async with asyncio.timeout(PATIENTLY):
        await made.site.is_waiting.wait()
    assert [request.path for request in made.site.asked] == ["/1"]
    for number in (1, 2):
        async with asyncio.timeout(PATIENTLY):
            await made.site.is_waiting.wait()
        made.site.is_waiting.clear()
        made.site.held.pop()()
        assert json.loads((await answer(reader))[2])["path"] == f"/{number}"
    made.site.is_slow = False
    writer.write(b"PUT /3 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert json.loads((await answer(reader))[2])["path"] == "/3"
    writer.close()


async def test_a_client_that_did_not_wait_for_the_disk_harms_nobody(
    made: Doorway, caplog: pytest.LogCaptureFixture
) -> None:
    made.site.is_slow = True
    _, writer = await made.connect()
    writer.write(b"PUT /1 HTTP/1.1\r\nHost: h\r\n\r\n")
    await made.site.is_waiting.wait()
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset: half closed would be served
    writer.transport.abort()
    await until(lambda: not made.door._guests)
    made.site.held.pop()()
    assert not caplog.records


async def test_head_is_get_without_its_content(made: Doorway) -> None:
    reader, writer = await made.connect()
    writer.write(b"HEAD /p HTTP/1.1\r\nHost: h\r\n\r\n")
    status, headers = await head(reader)
    assert (status, made.site.asked[0].method) == (200, "GET")
    assert int(headers["content-length"]) > 0
    writer.write(b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n")
    status, headers = await head(reader)
    assert status == 204
    assert "content-length" not in headers
    writer.close()


async def test_whoever_asks_first_is_told_to_go_on(made: Doorway) -> None:
    reader, writer = await made.connect()
    writer.write(b"PUT /p HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert (await head(reader))[0] == 100
    writer.write(b"ok")
    assert (await answer(reader))[0] == 200
    writer.write(b"PUT /p HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    assert (await answer(reader))[0] == 413
    assert await hung_up(reader) == b""
    writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, id="header"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"GET nowhere HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="target"),
        pytest.param(b"GET " + b"\xff" * 40 + b"\r\n\r\n", 400, id="noise"),
        pytest.param(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400, id="length"),
        pytest.param(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501, id="coding"),
        pytest.param(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, id="chunk"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            b"GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n",
            400,
            id="two-lengths",
        ),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 17_000 + b"\r\n\r\n", 431, id="large-header"),
        pytest.param(b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 431, id="large-target"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 300_000, 431, id="endless-header"),
        pytest.param(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n", 413, id="large-body"),
        pytest.param(
            b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 40,
            413,
            id="endless-body",
        ),
    ],
)
async def test_what_makes_no_sense_or_is_too_large_is_said_so_and_ends_the_connection(
    made: Doorway, sent: bytes, status: int
) -> None:
    reader, writer = await made.connect()
    writer.write(sent)
    told, headers, _ = await answer(reader)
    assert (told, headers["connection"]) == (status, "close")
    assert await hung_up(reader) == b""
    writer.close()
    assert made.site.asked == []
    assert b" 200 OK\r\n" in await made.converse(b"GET / HTTP/1.1\r\n" + CLOSE)


async def test_a_refusal_is_read_by_a_client_that_is_still_sending(made: Doorway) -> None:
    """Closing at once would reset the connection, and the answer with it."""
    reader, writer = await made.connect()
    writer.write(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 1000)
    await asyncio.sleep(0.1)
    writer.write(b"x" * 5_000_000)
    await asyncio.sleep(0.1)
    (guest,) = made.door._guests
    assert isinstance(guest, web.Web)
    assert len(guest._http.trailing_data[0]) < 10_000, "nothing of it is kept"
    assert (await answer(reader))[0] == 413
    writer.close()


async def test_whoever_asked_for_the_end_gets_it(made: Doorway) -> None:
    for sent in (b"GET / HTTP/1.1\r\n" + CLOSE, b"GET / HTTP/1.0\r\n\r\n"):
        assert b" 200 OK\r\n" in await made.converse(sent)


async def test_a_half_closed_client_is_answered(made: Doorway) -> None:
    made.site.is_slow = True
    reader, writer = await made.connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    writer.write_eof()
    await made.site.is_waiting.wait()
    await asyncio.sleep(0.1)
    made.site.held.pop()()
    assert (await answer(reader))[0] == 200
    assert await hung_up(reader) == b""
    writer.close()


async def test_half_a_request_is_not_answered_as_a_whole_one(made: Doorway) -> None:
    reader, writer = await made.connect()
    writer.write(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
    writer.write_eof()
    assert (await answer(reader))[0] == 400
    assert made.site.asked == []
    writer.close()


async def test_a_bug_costs_one_connection(made: Doorway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
        answered = await made.converse(b"GET /bug HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 500 ")
    assert b"a bug in the site" not in answered
    assert [record.message for record in caplog.records] == ["web.bug"]
    assert b" 200 OK\r\n" in await made.converse(b"GET / HTTP/1.1\r\n" + CLOSE)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n", id="half-a-header"),
        pytest.param(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab", id="half-a-body"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", id="nothing-more"),
    ],
)
async def test_who_goes_silent_is_shown_out(made: Doorway, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(web, "EXCHANGE_SECONDS", 0.2)
    reader, writer = await made.connect()
    writer.write(sent)
    await hung_up(reader)
    writer.close()


async def test_what_comes_before_its_turn_waits_in_the_kernel(made: Doorway) -> None:
    made.site.is_slow = True
    _, writer = await made.connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 1_000_000)
    await made.site.is_waiting.wait()
    await asyncio.sleep(0.3)
    (guest,) = made.door._guests
    assert isinstance(guest, web.Web)
    assert len(guest._http.trailing_data[0]) < 1_000_000
    writer.transport.abort()


async def test_after_a_refusal_nobody_stays_long(made: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LINGER_SECONDS", 0.2)
    reader, writer = await made.connect()
    writer.write(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n")
    assert (await answer(reader))[0] == 413
    await until(lambda: not made.door._guests)
    writer.close()


async def test_a_header_that_cannot_be_is_a_bug_of_the_site(made: Doorway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
        assert await made.converse(b"GET /bad-header HTTP/1.1\r\nHost: h\r\n\r\n") == b""
    assert [record.message for record in caplog.records] == ["web.bug"]


async def test_who_does_not_read_is_shown_out(made: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "EXCHANGE_SECONDS", 0.3)
    made.site.large = 20_000_000
    reader, writer = await made.connect(limit=1000)
    for _ in range(5):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await until(lambda: bool(made.site.asked) and not made.door._guests)
    assert len(made.site.asked) == 1, "the next request waits until the answer has left"
    assert len(await hung_up(reader)) < 20_000_000
    writer.close()


async def test_a_slow_uploader_gets_its_time_again_with_every_request(
    made: Doorway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "EXCHANGE_SECONDS", 1.5)
    reader, writer = await made.connect()
    for _ in range(4):
        await asyncio.sleep(0.5)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await answer(reader))[0] == 200
    writer.close()


async def test_closing_the_door_ends_idle_connections(made: Doorway) -> None:
    reader, writer = await made.connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await answer(reader))[0] == 200
    made.door.shut()
    made.door.clear()
    assert await hung_up(reader) == b""
    writer.close()


async def test_an_upgrade_to_something_else_is_passed_over(made: Doorway) -> None:
    """9110, 7.8: curl --http2 and others offer it with every request."""
    answered: Any = await made.converse(
        b"GET /p HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
        + CLOSE.replace(b"close", b"close, Upgrade")
    )
    assert b" 200 OK\r\n" in answered
