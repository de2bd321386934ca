"""Bus, store and files of one process, as counted calls: the ways in which anything it does outlives it.

Files are seen where Python meets the operating system, so that nothing that changes one is left out.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import io
import os
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final, TypeVar
from unittest.mock import patch

from messages.ports import Delivery
from tests.crash_points.points import Kind, Life

T = TypeVar("T")
WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
WRITES: Final = frozenset({"write", "fill"})
"""Calls that can get half of what they write into a file."""
ROOT: Final = "federation"
"""The last name of the directory that a federation is in."""
FILES_OF: Final[ContextVar[Life | None]] = ContextVar("files of", default=None)
"""The process whose tasks these are, where its files are counted."""


class Away:
    """A process's view of a bus, a store or an open blob: each operation is a call. Others run before and after it."""

    def __init__(self, inner: Any, life: Life) -> None:
        self._inner, self._life = inner, life

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(value) or name == "close":
            return value
        life = self._life

        async def call(*args: Any, **kwargs: Any) -> Any:
            answer = await called(life, f"{name} {_about(args)}", lambda: value(*args, **kwargs))
            return Away(answer, life) if name == "open" else answer

        setattr(self, name, call)
        return call


async def called(life: Life, what: str, make: Callable[[], Awaitable[T]]) -> T:
    """What the call returns. Raises Crash, Transient."""
    await _may_run(life)
    call, point = life.enter(what, away=True)
    await _may_run(life)  # the request is under way
    try:
        answer = await make()
    except Exception:  # an answer, too
        await _may_run(life)
        life.leave(call, point)
        raise
    await _may_run(life)  # the answer is
    life.leave(call, point)
    return answer


async def _may_run(life: Life) -> None:
    await asyncio.sleep(0)
    if life.frozen:
        await life.thawed.wait()
    life.check()


@contextlib.contextmanager
def files_counted() -> Iterator[None]:
    """Meanwhile everything that changes files is a call of the process whose task does it (`FILES_OF`)."""
    with contextlib.ExitStack() as stack:
        for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "ftruncate", "chmod", "fchmod", "fsync"):
            stack.enter_context(patch.object(os, name, _counted(name, getattr(os, name))))
        stack.enter_context(patch.object(os, "write", _write(os.write)))
        stack.enter_context(patch.object(os, "open", _opens(os.open)))
        writes = _fills(builtins.open)
        stack.enter_context(patch.object(io, "open", writes))
        stack.enter_context(patch.object(builtins, "open", writes))
        yield


def _counted(name: str, original: Callable[..., T]) -> Callable[..., T]:
    def call(*args: Any, **kwargs: Any) -> T:
        life = FILES_OF.get()
        if life is None:
            return original(*args, **kwargs)
        entered = life.enter(f"{name} {_place(args[0])}", away=False)
        try:
            answer = original(*args, **kwargs)
        except Exception:
            life.leave(*entered)
            raise
        life.leave(*entered)
        return answer

    return call


def _opens(original: Callable[..., int]) -> Callable[..., int]:
    """`os.open`, where it may make or change a file."""
    counted = _counted("open", original)

    def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        return (counted if flags & WRITING else original)(path, flags, *args, **kwargs)

    return call


def _fills(original: Callable[..., Any]) -> Callable[..., Any]:
    """Python's own `open`, to write: what is then written gets into the file with it, or half of it does."""

    def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        life = FILES_OF.get()
        if life is None or set("wxa+").isdisjoint(mode):
            return original(path, mode, *args, **kwargs)
        made, point = life.enter(f"fill {_place(path)}", away=False)
        try:
            file = original(path, mode, *args, **kwargs)
        except Exception:
            life.leave(made, point)
            raise
        if point is not None and point.kind is Kind.TORN:
            return _Torn(file, lambda: life.leave(made, point))
        life.leave(made, point)
        return file

    return call


class _Torn:
    """An open file whose writer dies with half of what it writes first in it."""

    def __init__(self, file: Any, die: Callable[[], None]) -> None:
        self._file, self._die = file, die

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> None:
        """Raises Crash."""
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._die()


def _write(original: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
    def call(fd: int, data: Any) -> int:
        life = FILES_OF.get()
        if life is None:
            return original(fd, data)
        made, point = life.enter("write", away=False)
        torn = point is not None and point.kind is Kind.TORN
        answer = original(fd, data[: len(data) // 2] if torn else data)
        life.leave(made, point)
        return answer

    return call


def _about(args: tuple[Any, ...]) -> str:
    match args:
        case (Delivery(queue=queue), *_):
            return queue
        case (str(first), str(second), *_):
            return f"{first}/{second}"
        case (str(only), *_):
            return only
        case _:
            return ""


def _place(file: Any) -> str:
    """A file's name below the federation's own directory: the same each time."""
    return "an open file" if isinstance(file, int) else str(file).rpartition(f"/{ROOT}/")[2]
