"""What a link's address names: a queue, the dead letter queue beside it, the management node of either, or $cbs.

Clients write the same place in several ways (a whole URL, a bare path, any case); only that is undone here.
Whether the place exists is not known here.
"""

import re
from dataclasses import dataclass
from typing import Any

from servicebus_emulator.codec import Described

_SCHEME_AND_HOST = re.compile(r"(?:amqps?|sb)://[^/]*/", re.IGNORECASE)
_MANAGEMENT = "/$management"
_DEAD_LETTER = "/$deadletterqueue"


@dataclass(frozen=True, slots=True)
class Address:
    queue: str  # lower case; empty for $cbs
    dead: bool = False
    management: bool = False

    @property
    def path(self) -> str:
        """The whole of it: what a token must cover."""
        return self.queue + (_DEAD_LETTER if self.dead else "") + (_MANAGEMENT if self.management else "")

    @property
    def is_cbs(self) -> bool:
        return not self.queue


CBS = Address("")


def parse_address(text: str) -> Address:
    path = _SCHEME_AND_HOST.sub("", text, count=1).strip("/").lower()
    if path == "$cbs":
        return CBS
    management = path.endswith(_MANAGEMENT)
    path = path.removesuffix(_MANAGEMENT)
    dead = path.endswith(_DEAD_LETTER)
    return Address(path.removesuffix(_DEAD_LETTER), dead, management)


def address_of(terminus: Described | None) -> str | None:
    """The address in a source or target (3.5.3, 3.5.4: the first field of both)."""
    if terminus is None or not isinstance(terminus.value, list) or not terminus.value:
        return None
    address: Any = terminus.value[0]
    return address if isinstance(address, str) else None
