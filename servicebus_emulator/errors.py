"""What can go wrong, and how far it reaches (AMQP 1.0 part 2.8.15 to 2.8.18).

The class says what is lost: a connection, a session, a link, or one delivery. The condition says whose fault it is.
Nothing here acts; whoever catches one tells the peer and closes just that much.
"""


class Fault(Exception):
    """Something that a peer is told about."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(f"{condition}: {description}")
        self.condition = condition
        self.description = description


class ConnectionFault(Fault):
    """The connection cannot go on: its bytes, frames or channels make no sense."""


class SessionFault(Fault):
    """The session cannot go on: a handle or window was misused."""


class LinkFault(Fault):
    """This link cannot be, or cannot stay, attached."""


class DeliveryFault(Fault):
    """This one delivery is refused; everything else goes on."""


DECODE_ERROR = "amqp:decode-error"
FRAMING_ERROR = "amqp:connection:framing-error"
ILLEGAL_STATE = "amqp:illegal-state"
INTERNAL_ERROR = "amqp:internal-error"
INVALID_FIELD = "amqp:invalid-field"
MESSAGE_SIZE_EXCEEDED = "amqp:link:message-size-exceeded"
NOT_ALLOWED = "amqp:not-allowed"
NOT_FOUND = "amqp:not-found"
NOT_IMPLEMENTED = "amqp:not-implemented"
CONNECTION_FORCED = "amqp:connection:forced"
DETACH_FORCED = "amqp:link:detach-forced"
RESOURCE_LIMIT_EXCEEDED = "amqp:resource-limit-exceeded"
HANDLE_IN_USE = "amqp:session:handle-in-use"
UNATTACHED_HANDLE = "amqp:session:unattached-handle"
WINDOW_VIOLATION = "amqp:session:window-violation"
UNAUTHORIZED = "amqp:unauthorized-access"
ENTITY_DISABLED = "com.microsoft:entity-disabled"
SERVER_BUSY = "com.microsoft:server-busy"
LOCK_LOST = "com.microsoft:message-lock-lost"
MESSAGE_NOT_FOUND = "com.microsoft:message-not-found"
ARGUMENT_ERROR = "com.microsoft:argument-error"


def gone(queue: str) -> LinkFault:
    """Why the links of a queue end with it."""
    return LinkFault(NOT_FOUND, f"The messaging entity '{queue}' has been deleted.")
