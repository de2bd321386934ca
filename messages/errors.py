"""The errors both halves share. Each says what becomes of the message that was being handled.

Nothing here knows a transport: adapters translate their SDK's exceptions into these, and only these cross a port.
No exception text may hold a secret, a connection string or a tensor's values.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import Final

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class SilobusError(Exception):
    """Base of every error that Silobus raises on purpose."""


class Transient(SilobusError):
    """A dependency is throttling, unreachable or answering 5xx: try again under the lock, with growing waits."""


class NoCredential(Transient):
    """No token can be had with the credential that the settings name: no service was asked, and it may come back."""


class Poison(SilobusError):
    """The message can never succeed: dead-letter it and tell its run.

    `reason` is a short kebab-case word for machines and queue tools; `description` tells a person what happened,
    to what, and what to do next.
    """

    def __init__(self, reason: str, description: str) -> None:
        super().__init__(f"{reason}: {description}")
        self.reason = reason
        self.description = description


class Stale(SilobusError):
    """The message speaks of something that is over (a closed round, an ended run): complete it quietly."""


class Duplicate(SilobusError):
    """The message was handled before: complete it quietly."""


class LockLost(SilobusError):
    """The lock of a delivery lapsed; the message will be, or was, delivered again. Normal for long work."""


class Conflict(SilobusError):
    """A conditional write lost: somebody else wrote the document since it was read. Reload and go again."""


class NotFound(SilobusError):
    """No blob of that name, or no queue of that name."""


class AlreadyExists(SilobusError):
    """A create-only blob of that name is there already. Weight blobs are named by content, so usually this is fine."""


class Forbidden(SilobusError):
    """The identity in use lacks the right for this operation on this queue or container."""


class InvalidWeights(SilobusError):
    """A safetensors file is malformed, hostile, or not what was expected. `reason` is one of `WeightsFault`'s words."""

    def __init__(self, reason: str, description: str) -> None:
        super().__init__(description)
        self.reason = reason
        self.description = description


def says_full(error: BaseException) -> bool:
    """Whether it says that a disk or a quota is full: somebody makes room, and then it works."""
    if isinstance(error, shutil.Error):  # of many files, told in words alone
        return any(os.strerror(number) in str(error) for number in _FULL)
    return isinstance(error, OSError) and error.errno in _FULL
