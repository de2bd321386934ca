"""Has the disk begin with what was written to a file, while the program goes on. It promises nothing: fsync does that,
and then has less to wait for.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE: begin, and wait for nothing


def _found() -> Any:
    """sync_file_range(2), where there is one: on Linux."""
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, TypeError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


_sync_file_range: Final = _found()


def begin_writing_back(fd: int, offset: int, length: int) -> None:
    """Begins to write so many bytes of an open file to its disk. Blocks for no longer than the disk's queue is full."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, length, _WRITE)  # what it could not do, fsync does
