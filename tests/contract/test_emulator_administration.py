"""Administration as the unmodified ServiceBusAdministrationClient sees it: a real process, a real port, a real disk."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import MessagingEntityNotFoundError, ServiceBusError
from azure.servicebus.management import AccessRights, AuthorizationRule, EntityStatus
from azure.servicebus.management import ServiceBusAdministrationClient as SyncClient
from typer.testing import CliRunner, Result

from messages import names
from messages.transport.administration import PlainTransport
from orchestrator import cli
from tests.emulator_process import EmulatorProcess

RULES = [
    {"Name": "admin", "Rights": ["Manage", "Send", "Listen"], "PrimaryKey": "admin-key"},
    {"Name": "sender", "Rights": ["Send"], "PrimaryKey": "sender-key"},
]


class PlainRequests(RequestsTransport):
    """The same for the synchronous client."""

    def send(self, request: Any, **options: Any) -> Any:
        request.url = request.url.replace("https://", "http://", 1)
        return super().send(request, **options)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[EmulatorProcess]:
    with EmulatorProcess(tmp_path) as running:
        yield running
    assert "web.bug" not in running.log_file.read_text()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[EmulatorProcess]:
    with EmulatorProcess(tmp_path, ["q"], rules={"": RULES}) as running:
        yield running


def key_of(emulator: EmulatorProcess, name: str, key: str) -> str:
    known = f"SharedAccessKeyName={name};SharedAccessKey={key}"
    return f"Endpoint=sb://127.0.0.1:{emulator.port};{known};UseDevelopmentEmulator=true"


def administration(connection_string: str) -> ServiceBusAdministrationClient:
    return ServiceBusAdministrationClient.from_connection_string(
        connection_string, transport=PlainTransport(use_env_settings=False), retry_total=0
    )


@pytest_asyncio.fixture
async def admin(emulator: EmulatorProcess) -> AsyncIterator[ServiceBusAdministrationClient]:
    async with administration(emulator.connection_string) as client:
        yield client


def bus(connection_string: str) -> ServiceBusClient:
    return ServiceBusClient.from_connection_string(connection_string, retry_total=0)


async def send(connection_string: str, queue: str, *texts: str) -> None:
    async with bus(connection_string) as client, client.get_queue_sender(queue) as sender:
        await sender.send_messages([ServiceBusMessage(text, message_id=text) for text in texts])


async def receive(connection_string: str, queue: str) -> list[str]:
    async with bus(connection_string) as client, client.get_queue_receiver(queue) as receiver:
        messages = await receiver.receive_messages(10, max_wait_time=2)
        for message in messages:
            await receiver.complete_message(message)
        return [str(message) for message in messages]


def test_the_synchronous_client_does_all_of_it(emulator: EmulatorProcess) -> None:
    with SyncClient.from_connection_string(
        emulator.connection_string, transport=PlainRequests(use_env_settings=False), retry_total=0
    ) as admin:
        made = admin.create_queue("q", lock_duration="PT30S", max_delivery_count=3, user_metadata="mine")
        assert (made.lock_duration, made.max_delivery_count, made.user_metadata) == (timedelta(seconds=30), 3, "mine")
        with pytest.raises(ResourceExistsError, match="already exists"):
            admin.create_queue("q")
        made.max_delivery_count = 5
        admin.update_queue(made)
        assert admin.get_queue("q").max_delivery_count == 5
        for n in range(5):
            admin.create_queue(f"q{n}")
        pages = [[queue.name for queue in page] for page in admin.list_queues(max_page_size=4).by_page()]
        assert pages == [["q", "q0", "q1", "q2"], ["q3", "q4"]]
        assert [queue.total_message_count for queue in admin.list_queues_runtime_properties()] == [0] * 6
        runtime = admin.get_queue_runtime_properties("q")
        assert (runtime.active_message_count, runtime.size_in_bytes) == (0, 0)
        assert admin.get_namespace_properties().name == "127.0.0.1"
        assert list(admin.list_topics()) == []
        admin.delete_queue("q")
        with pytest.raises(ResourceNotFoundError):
            admin.get_queue("q")
        with pytest.raises(ResourceNotFoundError):
            admin.delete_queue("q")


async def test_every_setting_comes_back_as_it_was_given(admin: ServiceBusAdministrationClient) -> None:
    given: dict[str, Any] = {
        "auto_delete_on_idle": timedelta(hours=1),
        "dead_lettering_on_message_expiration": True,
        "default_message_time_to_live": timedelta(days=14),
        "duplicate_detection_history_time_window": timedelta(minutes=5),
        "enable_batched_operations": False,
        "enable_express": True,
        "enable_partitioning": True,
        "lock_duration": timedelta(seconds=45),
        "max_delivery_count": 7,
        "max_size_in_megabytes": 3072,
        "requires_duplicate_detection": True,
        "requires_session": False,
        "user_metadata": "für <mich> & andere",
        "max_message_size_in_kilobytes": 1024,
        "status": EntityStatus.RECEIVE_DISABLED,
    }
    await admin.create_queue("a/b.c", **given)
    told = await admin.get_queue("a/b.c")
    assert {name: told[name] for name in given} == given
    await admin.update_queue(told)
    again = await admin.get_queue("a/b.c")
    assert dict(again.items()) == dict(told.items())
    await admin.create_queue("plain")
    plain = await admin.get_queue("plain")
    await admin.update_queue(plain)
    assert dict((await admin.get_queue("plain")).items()) == dict(plain.items())
    assert plain.default_message_time_to_live.days == 10_675_199, "for ever"


async def test_what_cannot_be_is_said_in_words(admin: ServiceBusAdministrationClient) -> None:
    await admin.create_queue("q")
    told = await admin.get_queue("q")
    for wrong, why in (
        ({"lock_duration": "PT6M"}, "LockDuration is PT6M"),
        ({"requires_session": True}, "RequiresSession is not supported"),
        ({"forward_to": "q"}, "ForwardTo is not supported"),
        ({"max_message_size_in_kilobytes": 2048}, "--max-message-size"),
        ({"status": "Renaming"}, "Status is one of"),
    ):
        for attempt in (admin.create_queue("new", **wrong), admin.update_queue(told, **wrong)):
            with pytest.raises(HttpResponseError, match=why):
                await attempt
    with pytest.raises(HttpResponseError, match=r"RequiresDuplicateDetection property .* cannot be changed"):
        await admin.update_queue(told, requires_duplicate_detection=True)
    with pytest.raises(HttpResponseError, match="Topics are not supported"):
        await admin.create_topic("t")
    for missing in (admin.get_queue("new"), admin.get_queue_runtime_properties("new"), admin.delete_queue("new")):
        with pytest.raises(ResourceNotFoundError):
            await missing
    told.name = "new"
    with pytest.raises(ResourceNotFoundError):
        await admin.update_queue(told)


async def test_a_queue_made_at_run_time_is_a_queue(
    emulator: EmulatorProcess, admin: ServiceBusAdministrationClient
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    await admin.create_queue("q", requires_duplicate_detection=True)
    await send(emulator.connection_string, "q", "a", "b", "a")
    async with bus(emulator.connection_string) as client, client.get_queue_sender("q") as sender:
        await sender.schedule_messages(ServiceBusMessage("later"), datetime.now(UTC) + timedelta(hours=1))
    async with bus(emulator.connection_string) as client, client.get_queue_receiver("q") as receiver:
        [message] = await receiver.receive_messages(1)
        await receiver.dead_letter_message(message, reason="x")
    runtime = await admin.get_queue_runtime_properties("q")
    assert (
        runtime.active_message_count,
        runtime.dead_letter_message_count,
        runtime.scheduled_message_count,
        runtime.transfer_message_count,
        runtime.total_message_count,
    ) == (1, 1, 1, 0, 3)
    assert runtime.size_in_bytes
    after = datetime.now(UTC) + timedelta(seconds=1)
    for moment in (runtime.created_at_utc, runtime.updated_at_utc, runtime.accessed_at_utc):
        assert moment is not None
        assert before <= moment.replace(tzinfo=UTC) <= after
    assert [queue.active_message_count async for queue in admin.list_queues_runtime_properties()] == [1]


async def test_new_settings_are_for_what_comes_after(
    emulator: EmulatorProcess, admin: ServiceBusAdministrationClient
) -> None:
    await admin.create_queue("q", lock_duration="PT5M")
    queue = await admin.get_queue("q")
    client = bus(emulator.connection_string)
    async with client, client.get_queue_sender("q") as sender, client.get_queue_receiver("q") as receiver:
        await sender.send_messages([ServiceBusMessage("a"), ServiceBusMessage("b")])
        [first] = await receiver.receive_messages(1, max_wait_time=20)
        await admin.update_queue(queue, lock_duration="PT10S")
        [second] = await receiver.receive_messages(1, max_wait_time=20)
        assert first.locked_until_utc - second.locked_until_utc > timedelta(minutes=4)
        await admin.update_queue(queue, status=EntityStatus.SEND_DISABLED)
        with pytest.raises(ServiceBusError):
            await sender.send_messages(ServiceBusMessage("c"))


async def test_links_to_a_deleted_queue_end_and_the_next_ones_find_nothing(
    emulator: EmulatorProcess, admin: ServiceBusAdministrationClient
) -> None:
    await admin.create_queue("q")
    async with bus(emulator.connection_string) as client:
        receiver, sender = client.get_queue_receiver("q"), client.get_queue_sender("q")
        async with receiver, sender:
            await sender.send_messages(ServiceBusMessage("a"))
            await receiver.peek_messages()
            waiting = asyncio.ensure_future(receiver.receive_messages(5, max_wait_time=20))
            assert [str(message) for message in await waiting] == ["a"]
            waiting = asyncio.ensure_future(receiver.receive_messages(5, max_wait_time=20))
            await asyncio.sleep(0.5)
            started = time.monotonic()
            await admin.delete_queue("q")
            with pytest.raises(MessagingEntityNotFoundError):
                await waiting
            assert time.monotonic() - started < 10
            with pytest.raises(ServiceBusError):  # the SDK does not say that its link was detached in between
                await sender.send_messages(ServiceBusMessage("b"))
            with pytest.raises(MessagingEntityNotFoundError):
                await sender.send_messages(ServiceBusMessage("b"))
    await admin.create_queue("q")
    assert (await admin.get_queue_runtime_properties("q")).total_message_count == 0
    await send(emulator.connection_string, "q", "new")
    assert await receive(emulator.connection_string, "q") == ["new"]


async def test_what_was_answered_survives_a_power_cut(tmp_path: Path) -> None:
    with EmulatorProcess(tmp_path) as emulator:
        for number in range(3):
            async with administration(emulator.connection_string) as admin:
                await admin.create_queue(f"q{number}", max_delivery_count=number + 1)
            emulator.kill()
            emulator.start()
            await send(emulator.connection_string, f"q{number}", "a")
            async with administration(emulator.connection_string) as admin:
                queue = await admin.get_queue(f"q{number}")
                assert queue.max_delivery_count == number + 1
                await admin.update_queue(queue, max_delivery_count=99)
                emulator.kill()
            emulator.start()
            async with administration(emulator.connection_string) as admin:
                assert (await admin.get_queue(f"q{number}")).max_delivery_count == 99
                assert (await admin.get_queue_runtime_properties(f"q{number}")).active_message_count == 1
                if number % 2:
                    await admin.delete_queue(f"q{number}")
                    emulator.kill()
                    emulator.start()
        async with administration(emulator.connection_string) as admin:
            assert [queue.name async for queue in admin.list_queues()] == ["q0", "q2"]


async def test_only_a_key_with_manage_administers(guarded: EmulatorProcess) -> None:
    for name, key in (("sender", "sender-key"), ("admin", "wrong"), ("nobody", "admin-key")):
        async with administration(key_of(guarded, name, key)) as client:
            for attempt in (
                client.create_queue("new"),
                client.get_queue("q"),
                client.get_queue_runtime_properties("q"),
                client.delete_queue("q"),
                client.get_namespace_properties(),
            ):
                with pytest.raises(ClientAuthenticationError):
                    await attempt
            with pytest.raises(ClientAuthenticationError):
                [queue async for queue in client.list_queues()]
    async with administration(key_of(guarded, "admin", "admin-key")) as client:
        assert [queue.name async for queue in client.list_queues()] == ["q"]
        told = await client.get_queue("q")
    async with administration(key_of(guarded, "sender", "sender-key")) as client:
        with pytest.raises(ClientAuthenticationError):
            await client.update_queue(told)


async def test_a_rule_that_was_made_lets_in_over_amqp_until_it_is_gone(guarded: EmulatorProcess) -> None:
    rule = AuthorizationRule(
        type="SharedAccessAuthorizationRule",
        claim_type="SharedAccessKey",
        claim_value="None",
        rights=[AccessRights.SEND, AccessRights.LISTEN],
        key_name="made",
        primary_key="first-key",
        secondary_key="second-key",
    )
    async with administration(key_of(guarded, "admin", "admin-key")) as client:
        await client.create_queue("new", authorization_rules=[rule])
        [told] = (await client.get_queue("new")).authorization_rules or []
        assert (told.key_name, told.primary_key, told.secondary_key) == ("made", "first-key", "second-key")
        assert set(told.rights or ()) == {"Send", "Listen"}
        guarded.kill()
        guarded.start()
        await send(key_of(guarded, "made", "first-key"), "new", "a")
        assert await receive(key_of(guarded, "made", "second-key"), "new") == ["a"]
        with pytest.raises(ServiceBusError):
            await send(key_of(guarded, "made", "first-key"), "q", "a")
        await client.update_queue(await client.get_queue("new"), authorization_rules=[])
        with pytest.raises(ServiceBusError):
            await send(key_of(guarded, "made", "first-key"), "new", "a")


def queues(directory: Path, connection_string: str, *arguments: str) -> Result:
    """`silobus queues` with that key."""
    (directory / "key").write_text(connection_string)
    config = {
        "bus": {"connection_string_file": "key"},
        "store": {"directory": "store"},
        "silos": ["north"],
        "scratch": "scratch",
    }
    (directory / "orchestrator.yaml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(cli.app, ["queues", *arguments, "--config", str(directory / "orchestrator.yaml")])


def test_silobus_counts_by_administration_with_manage_and_by_peeking_without(tmp_path: Path) -> None:
    made = [queue for queue in names.queues(["north"]) if queue != "work"]
    listener = {"Name": "operator", "Rights": ["Listen", "Send"], "PrimaryKey": "operator-key"}
    with EmulatorProcess(tmp_path / "emulator", made, rules={"": [*RULES, listener]}) as emulator:
        asyncio.run(send(key_of(emulator, "admin", "admin-key"), "experiments", "a", "b"))
        rows = {}
        for name, key in (("admin", "admin-key"), ("operator", "operator-key")):
            result = queues(tmp_path, key_of(emulator, name, key), "--json")
            assert result.exit_code == 0, result.stderr
            assert result.stderr == ""
            rows[name] = {row["queue"]: row for row in json.loads(result.stdout)}
        for name, way in (("admin", "administration"), ("operator", "peeking")):
            assert {row.pop("counted_by") for row in rows[name].values()} == {way}
        assert rows["admin"] == rows["operator"]
        assert rows["admin"]["experiments"]["active"] == 2
        assert rows["admin"]["work"]["missing"] is True
        assert queues(tmp_path, key_of(emulator, "admin", "admin-key")).stderr == ""
        without = queues(tmp_path, key_of(emulator, "operator", "operator-key"))
        assert without.exit_code == 0
        assert without.stderr.count("Counted by peeking") == 1
        assert "operator-key" not in without.output
