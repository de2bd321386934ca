"""Structured logging, the same for both halves: one JSON object per line, an event's name and the ids it is about.

Never message bodies, weights or data. Redaction here is the last line of defence, not a licence to log secrets.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO, Any, Final, final

_FIELDS: Final = "silobus_fields"
_SECRETS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), r"\1[redacted]")
    for pattern in (
        r"((?:SharedAccessKey|AccountKey|SharedSecret)\s*[=:]\s*)[^;\s\"'\\,&]+",  # connection strings
        r"(\b(?:sig|client_secret|code|access_token|refresh_token)=)[^&;\s\"'\\,]+",  # SAS URLs, OAuth bodies
        r"(\bBearer\s+)[A-Za-z0-9._~+/=-]{16,}",
        r"()\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # a JSON Web Token
        r"(://[^/\s:@\"']*:)[^@/\s\"']+(?=@)",  # user and password of a proxy
        r"(input_value=).*?(?=, input_type=)",  # what pydantic repeats of a message
    )
)


def redact(text: str) -> str:
    """`text` without anything that looks like a key, a signature or a token."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


@final
class EventLog:
    """Logs events: `log.info("round.aggregated", run=run, round=3)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: object) -> None:
        """What only a developer wants to see."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Something happened that an operator may want to follow."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something is not as it should be, and is being dealt with."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """A person has to do something."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """A bug of ours, with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, object], *, exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, exc_info=exc_info, extra={_FIELDS: fields}, stacklevel=3)


@final
class JsonLines(logging.Formatter):
    """One line of JSON per record, whoever logged it; redacted."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
        }
        fields = getattr(record, _FIELDS, None)
        if fields is None:  # a library's record, in its own words
            line |= {"event": "library.log", "logger": record.name, "text": record.getMessage()}
        else:
            line |= {"event": record.getMessage(), **fields}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_redacted(line), ensure_ascii=False, default=_as_text)


def configure(process: str, *, level: str = "INFO", stream: IO[str] | None = None) -> None:
    """Makes everything this process logs come out as JSON lines, on stderr unless another stream is given.

    Libraries are heard from WARNING on; ours from `level` on.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("messages", "orchestrator", "silo_agent"):
        logging.getLogger(ours).setLevel(level)
    for library in ("azure", "uamqp", "msal", "aiohttp", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)


def speak_anywhere() -> None:
    """For commands: a stream that was closed before we began leads nowhere; one that lacks a letter gets its number.

    Else the first file that is opened would get what is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (as long as the process)
        elif mode == "w":
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """For commands: what waits to be printed is printed, and what the system refuses, that too, ends in a line."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # else it happens when nobody can hear of it any more
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno is None:
            raise  # nothing that the system said
        if not isinstance(error, BrokenPipeError):  # a reader that has gone wants to hear no more
            sys.stderr.write(system_said(error) + "\n")
        if error.filename is None:
            sys.stdout = None  # most likely that; and what waits in it cannot be written
        raise SystemExit(1) from None


def system_said(error: OSError) -> str:
    """What the system would not let a command do, in a sentence, and what to do next."""
    place = error.filename if error.filename2 is None else error.filename2  # of a rename its end is known to people
    at = "What is printed, or a file, could not be written" if place is None else place
    match error.errno:
        case errno.EACCES | errno.EPERM:
            remedy = "This user may not use it: type this as the user that it belongs to, or name another place."
        case errno.EROFS:
            remedy = "Name another place, or make this one writable."
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            remedy = "Make room, and type this again."
        case _:
            remedy = "Look what is there, and type this again."
    return f"{at}: {error.strerror}. {remedy}"


def leave_words_to_us() -> None:
    """For commands: where nobody said what becomes of logs, Python prints Azure's errors, with tracebacks, though the
    command goes on and says itself what could not be done."""
    logging.getLogger("azure").addHandler(logging.NullHandler())


def leave_credentials_to_us() -> None:
    """Silences azure-identity, which warns several times of each token that cannot be had: NoCredential tells that."""
    logging.getLogger("azure.identity").setLevel(logging.ERROR)


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else redact(str(value))


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case dict():
            return {str(key): _redacted(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(item) for item in value]
        case _:
            return value
