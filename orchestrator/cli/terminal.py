"""What people and scripts see: tables, JSON, and complaints of a line or two. No command's own logic lives here.

An expected error is never a traceback. What it says: what happened, and what to do next; never a secret.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ParamSpec

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from messages.errors import Forbidden, NoCredential, NotFound, Poison, SilobusError, Transient

P = ParamSpec("P")

Json = Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")]


class Complaint(Exception):
    """Something a person can put right. The text is all they see; the process ends with exit status 1."""


def console() -> Console:
    """Where tables go. Made anew each time, since tests exchange standard output."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def say(line: str) -> None:
    """One line for people, never wrapped or styled."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def warn(line: str) -> None:
    """One line for people on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON value."""
    say(json.dumps(value, indent=indent, ensure_ascii=False, default=_plain))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = (), title: str = ""
) -> Table:
    """A table without frames; columns in `numbers` are aligned to the right."""
    made = Table(*[], box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(shown(cell)) for cell in row))
    return made


def shown(value: Any) -> str:
    """A value as a cell of a table."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case datetime():
            return ago(value)
        case _:
            return str(value)


def ago(time: datetime) -> str:
    """How long since, in the largest fitting unit."""
    seconds = (datetime.now(UTC) - time).total_seconds()
    if seconds < 0:
        return f"in {_span(-seconds)}"
    return f"{_span(seconds)} ago"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def command(function: Callable[P, Coroutine[Any, Any, None] | None]) -> Callable[P, None]:
    """A command's function, its coroutine run and its expected errors said plainly."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            made = function(*args, **kwargs)
            if made is not None:
                asyncio.run(made)
        except (Complaint, SilobusError) as error:
            warn(explain(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output has gone: `silobus status | head`
            sys.stdout = None  # nothing more can be flushed to it
            raise typer.Exit(0) from None

    return run


def explain(error: Complaint | SilobusError) -> str:
    """An expected error in a line or two: what happened, what to do next."""
    match error:
        case NoCredential():  # a Transient, for whoever waits; here a person mends it, and no network is to blame
            return f"Not signed in: {error}\nThe settings name this credential, under `bus` or `store`."
        case Transient():
            return f"Not reachable right now: {error}\nIs the federation running (`silobus up`)? Is the network down?"
        case Forbidden():
            return f"Not allowed: {error}\nThe identity in use needs the right for this queue, container or folder."
        case NotFound():
            return f"Not found: {error}"
        case Poison():
            return f"{error.description} ({error.reason})"
        case _:
            return str(error)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")
