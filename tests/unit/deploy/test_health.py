"""The health port: it answers while the loop turns, on loopback unless told otherwise, and never holds anything up."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest
from pydantic import ValidationError

from messages import health
from messages.health import HealthSettings, answering
from messages.settings import SettingsError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_it_answers_on_its_path_and_nothing_else() -> None:
    port = free_port()
    async with answering(HealthSettings(port=port)):
        alive = await ask(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert alive.startswith(b"HTTP/1.1 200 OK\r\n")
        assert alive.endswith(b"\r\n\r\nok\n")
        for other in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST /healthz HTTP/1.1\r\n\r\n",
            b"GET /healthz/../x HTTP/1.1\r\n\r\n",
        ):
            assert (await ask(port, other)).startswith(b"HTTP/1.1 404 ")
    with pytest.raises(OSError, match=r"refused|Connect"):
        await ask(port, b"")


async def test_who_says_too_much_or_nothing_is_cut_off_and_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 1.0)
    port = free_port()
    async with answering(HealthSettings(port=port)):
        silent = asyncio.create_task(ask(port, b"GET /healthz"))
        assert await ask(port, b"x" * 100_000) == b""
        assert (await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await silent == b""


async def test_a_port_that_is_taken_is_told_as_a_setting_to_change() -> None:
    port = free_port()
    async with answering(HealthSettings(port=port)):
        with pytest.raises(SettingsError, match=rf"health: cannot listen on 127\.0\.0\.1:{port}"):
            async with answering(HealthSettings(port=port)):
                pass


async def test_without_settings_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "start_server", None)
    async with answering(None):
        pass


def test_it_listens_on_loopback_or_on_the_pod_only() -> None:
    assert HealthSettings(port=1).host == "127.0.0.1"
    assert HealthSettings(port=1, host="::").host == "::"
    with pytest.raises(ValidationError):
        HealthSettings.model_validate({"port": 1, "host": "10.1.2.3"})


async def test_the_command_asks_and_a_loop_that_hangs_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    command = [sys.executable, "-m", "messages.health", str(port)]
    async with answering(HealthSettings(port=port)):
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0
        monkeypatch.setattr(health, "_PATIENCE", 0.3)
        assert health.main([str(port)]) == 1  # asked from the loop itself, which can not answer meanwhile
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 1
