"""What ``<queue>/$management`` can do: the operations of a queue that are asked for, not streamed.

One method per operation, from the request's map to the reply's. The carrying is in ``nodes``, the doing in
``broker``. Sessions and rules are not supported and say so.
"""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from servicebus_emulator import errors, log
from servicebus_emulator.broker import Queue
from servicebus_emulator.codec import Array, DecodeError, Symbol, Timestamp, array_of
from servicebus_emulator.errors import DeliveryFault
from servicebus_emulator.message import read_arrival, read_properties
from servicebus_emulator.namespace import LiveQueue
from servicebus_emulator.nodes import Reply, Request, render_reply
from servicebus_emulator.queue_links import render_delivery
from servicebus_emulator.record import Disabled, LockLost, NotFound, QueueFull, Refused
from servicebus_emulator.rights import Right
from servicebus_emulator.validity import is_whole

MOST_PEEKED_BYTES = 768 * 1024
SENDS = ("com.microsoft:schedule-message", "com.microsoft:cancel-scheduled-message")
"""Operations that need the right to send; all others need that to listen."""


class Management:
    """The management node of a queue, or (``dead``) of its dead letter queue."""

    def __init__(self, live: LiveQueue, max_message_size: int, may: Callable[[Right], bool], *, dead: bool) -> None:
        self._live = live
        self._dead = dead
        self._max_message_size = min(live.queue.settings.max_message_size or max_message_size, max_message_size)
        self._may = may
        self._operations: dict[str, Callable[[Mapping[str, Any]], Reply]] = {
            "com.microsoft:renew-lock": self._renew_lock,
            "com.microsoft:peek-message": self._peek,
            "com.microsoft:schedule-message": self._schedule,
            "com.microsoft:cancel-scheduled-message": self._cancel_scheduled,
            "com.microsoft:receive-by-sequence-number": self._receive_deferred,
            "com.microsoft:update-disposition": self._update_disposition,
        }

    def after_commit(self, act: Callable[[], None]) -> None:
        self._live.journal.after_commit(act)

    def render(self, request: Request, reply: Reply) -> bytes:
        return render_reply(request, reply, "statusCode", "statusDescription")

    def answer(self, request: Request) -> Reply:
        operation = self._operations.get(request.operation)
        if operation is None:
            return Reply(501, f"{request.operation:.99} is not supported", condition=errors.NOT_IMPLEMENTED)
        right = Right.SEND if request.operation in SENDS else Right.LISTEN
        if not self._may(right):
            said = f"Unauthorized access. '{right}' claim(s) are required to perform this operation."
            return Reply(401, said, condition=errors.UNAUTHORIZED)
        try:
            if not isinstance(request.value, dict):
                raise DecodeError("the request's body is a map")
            return operation(request.value)
        except LockLost as lost:
            return Reply(410, f"The lock supplied is invalid: {lost}", condition=errors.LOCK_LOST)
        except NotFound as missing:
            return Reply(404, str(missing), condition=errors.MESSAGE_NOT_FOUND)
        except Refused as refused:
            return Reply(400, str(refused), condition=errors.NOT_ALLOWED)
        except Disabled as disabled:
            return Reply(400, str(disabled), condition=errors.ENTITY_DISABLED)
        except QueueFull as full:
            return Reply(403, str(full), condition=errors.RESOURCE_LIMIT_EXCEEDED)
        except DeliveryFault as fault:
            return Reply(400, fault.description, condition=fault.condition)
        except DecodeError as error:
            return Reply(400, str(error), condition=errors.ARGUMENT_ERROR)

    # -------------------------------------------------------------------------------------- operations

    def _renew_lock(self, asked: Mapping[str, Any]) -> Reply:
        tokens = _items(asked, "lock-tokens", UUID)

        def renew(queue: Queue, now: int) -> list[int]:
            for token in tokens:
                queue.check_lock(token, now)
            return [queue.renew(token, now) for token in tokens]

        return Reply(200, value={"expirations": array_of(Timestamp, self._live.act(renew))})

    def _peek(self, asked: Mapping[str, Any]) -> Reply:
        first = _integer(asked, "from-sequence-number")
        count = _integer(asked, "message-count")
        found = self._live.act(lambda queue, now: queue.peek(first, count, dead=self._dead))
        messages: list[dict[str, Any]] = []
        size = 0
        for message in found:
            try:
                rendered = render_delivery(message)
            except Exception as error:  # noqa: BLE001 - one message that cannot be shown must not hide the others
                log.error("peek.bug", exc_info=error, queue=self._live.name, sequence=message.sequence)
                continue
            size += len(rendered)
            if messages and size > MOST_PEEKED_BYTES:
                break
            messages.append({"message": rendered})
        if not messages:
            return Reply(204, "No more messages")
        return Reply(200, value={"messages": messages})

    def _schedule(self, asked: Mapping[str, Any]) -> Reply:
        if self._dead:
            raise Refused("nothing can be sent to a dead letter queue")
        arrivals = []
        entries = asked.get("messages")
        if not isinstance(entries, list) or not entries:
            raise DecodeError("messages is a list of at least one")
        for entry in entries:
            payload = entry.get("message") if isinstance(entry, dict) else None
            if not isinstance(payload, bytes):
                raise DecodeError("a message is binary")
            if len(payload) > self._max_message_size:
                raise DeliveryFault(
                    errors.MESSAGE_SIZE_EXCEEDED,
                    f"The message is {len(payload)} bytes; {self._max_message_size} are allowed.",
                )
            arrivals.append(read_arrival(payload))
        return Reply(200, value={"sequence-numbers": array_of(int, self._live.send(arrivals))})

    def _cancel_scheduled(self, asked: Mapping[str, Any]) -> Reply:
        sequences = _items(asked, "sequence-numbers", int)
        self._live.act(lambda queue, now: queue.cancel_scheduled(sequences))
        return Reply(200)

    def _receive_deferred(self, asked: Mapping[str, Any]) -> Reply:
        sequences = _items(asked, "sequence-numbers", int)
        deletes = _integer(asked, "receiver-settle-mode") == 0
        received = self._live.act(
            lambda queue, now: queue.receive_deferred(sequences, now, dead=self._dead, lock=not deletes)
        )
        messages = []
        for message in received:
            entry: dict[str, Any] = {"message": render_delivery(message)}
            if message.lock is not None:
                entry["lock-token"] = message.lock
            messages.append(entry)
        return Reply(200, value={"messages": messages})

    def _update_disposition(self, asked: Mapping[str, Any]) -> Reply:
        """All of the tokens, or none."""
        tokens = _items(asked, "lock-tokens", UUID)
        status = asked.get("disposition-status")
        reason, description = _text(asked, "deadletter-reason"), _text(asked, "deadletter-description")
        added = read_properties(asked.get("properties-to-modify"))

        def settle(queue: Queue, now: int) -> None:
            for token in tokens:
                queue.check_lock(token, now)
            for token in tokens:
                match status:
                    case "completed":
                        queue.complete(token, now)
                    case "abandoned":
                        queue.abandon(token, now, added)
                    case "defered":
                        queue.defer(token, now, added)
                    case "suspended":
                        queue.dead_letter(token, now, reason, description, added)
                    case _:
                        raise DecodeError(f"{status!r} is not a disposition-status")

        self._live.act(settle)
        return Reply(200)


def _items(asked: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    """Of numbers, or of lock tokens."""
    value = asked.get(name)
    items = list(value.items) if isinstance(value, Array) else value
    is_one = is_whole if kind is int else lambda item: isinstance(item, kind)
    if not isinstance(items, list) or not items or not all(map(is_one, items)):
        raise DecodeError(f"{name} is an array of at least one")
    if len(set(items)) != len(items):
        raise DecodeError(f"{name} names something twice")
    return items


def _integer(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name)
    if not is_whole(value):
        raise DecodeError(f"{name} is a number")
    return int(value or 0)


def _text(asked: Mapping[str, Any], name: str) -> str | None:
    value = asked.get(name)
    if value is not None and type(value) not in (str, Symbol):
        raise DecodeError(f"{name} is a string")
    return None if value is None else str(value)
