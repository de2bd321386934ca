"""What a queue keeps of a message, what it tells a journal, and what it says no with. No behaviour beyond times."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol
from uuid import UUID


class LockLost(Exception):
    """The token locks nothing: it expired, or its message was settled."""


class NotFound(Exception):
    """No message with such a sequence number is where it was looked for."""


class Refused(Exception):
    """The queue does not do this with that message."""


class QueueFull(Exception):
    """There is no room for more messages."""


class Disabled(Exception):
    """The queue does not take messages now, or does not give any out."""


class State(IntEnum):
    """As clients see it in x-opt-message-state."""

    ACTIVE = 0
    DEFERRED = 1
    SCHEDULED = 2


@dataclass(slots=True)
class Message:
    id: int  # identity in the store; never seen outside
    sequence: int
    message_id: str
    payload: bytes
    enqueued_at: int
    state: State = State.ACTIVE
    dead: bool = False
    scheduled_for: int | None = None
    ttl: int | None = None
    delivery_count: int = 0
    lock: UUID | None = None
    locked_until: int | None = None  # as its holder was told
    lock_limit: int | None = None  # when the lock is gone all the same; only in memory
    added: dict[str, Any] = field(default_factory=dict)
    """Application properties of receivers, and of the queue when it made this a dead letter."""

    @property
    def expires_at(self) -> int | None:
        """Dead letters never expire."""
        if self.ttl is None or self.dead:
            return None
        return self.enqueued_at + self.ttl

    @property
    def lock_end(self) -> int | None:
        if self.locked_until is None or self.lock_limit is None:
            return self.locked_until
        return min(self.locked_until, self.lock_limit)

    @property
    def deadline(self) -> int | None:
        """When time alone next changes this message.

        A locked message does not expire before its lock does, and a scheduled one not before it is active.
        """
        if self.lock is not None:
            return self.lock_end
        if self.state is State.SCHEDULED:
            return self.scheduled_for
        return self.expires_at


class Journal(Protocol):
    """Hears every change, in order."""

    def new_id(self) -> int: ...
    def save(self, queue: int, message: Message, *, is_new: bool = False) -> None: ...
    def delete(self, queue: int, message: Message) -> None: ...
    def sequence(self, queue: int, last: int) -> None: ...
    def remember(self, queue: int, message_id: str, at: int) -> None: ...
    def forget(self, queue: int, before: int) -> None: ...
