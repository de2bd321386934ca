"""The log of everything that leaves the silo: written before it is sent, each line chained to the one before.

Here lives the log's format and its check. A line is JSON with its number, time, what was sent and for whom, the hash of
the line before (`prev`) and its own (`hash`: SHA-256 of the line without that field). `egress.head` holds number and
hash of the last line that must be there. Whoever can write both files can forge both: owners who need more keep a copy
of `egress.head` elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, final

from silo_agent.journal import Journal, complete_lines, make_durable

FIRST: Final = "0" * 64
"""What the first line is chained to."""


class EgressBroken(Exception):
    """The log is not as it was written; the text says where."""


@final
class EgressLog:
    """The log, open for appending. Blocks: use it in a thread. Raises EgressBroken when the chain does not hold."""

    def __init__(self, path: Path) -> None:
        if problem := verify(path):
            raise EgressBroken(problem)
        self._head = head_of(path)
        if not self._head.exists():
            self._vouch(0, FIRST)  # before the first line: a log without it has lost it
            make_durable(self._head)
            make_durable(self._head.parent)
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._number, self._last = 0, FIRST
        self._published: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for line in self._journal.found:
            self._remember(json.loads(line))

    def append(self, at: datetime, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        """Adds a line about something that is about to leave."""
        with self._lock:
            line = _sealed({"n": self._number + 1, "at": at.isoformat(), **entry, "prev": self._last})
            self._journal.append(_encode(line), durable=durable)
            self._remember(line)
            if durable:  # never ahead of what the disk holds, so that a power cut does not look like tampering
                self._vouch(line["n"], line["hash"])

    def tries_published(self, run: str, round_number: int) -> dict[str, int]:
        """For each update-published message logged for a round, by its SHA-256: the try that made it."""
        with self._lock:
            return dict(self._published.get((run, round_number), ()))

    def close(self) -> None:
        """Closes the file."""
        self._journal.close()

    def _vouch(self, number: int, last: str) -> None:
        beside = self._head.with_suffix(".writing")
        beside.write_bytes(_encode({"n": number, "hash": last}))
        beside.replace(self._head)

    def _remember(self, line: dict[str, Any]) -> None:
        self._number, self._last = line["n"], line["hash"]
        if line.get("what") == "update":
            key = (line["asked"]["run"], line["asked"]["round"])
            self._published.setdefault(key, []).append((line["sha256"], line["try"]))


def verify(path: Path) -> str | None:
    """What is wrong with a log, or None. A last line that was cut off while it was written is no fault."""
    number, last = 0, FIRST
    head = head_of(path)
    if path.exists() and not head.exists():
        return "egress.head is missing: nothing says which line must be the last"
    must = json.loads(head.read_bytes()) if head.exists() else {"n": 0, "hash": FIRST}
    seen = must["n"] == 0
    for raw in complete_lines(path)[0] if path.exists() else []:
        number += 1
        try:
            line = json.loads(raw)
            claimed = line["hash"]
            if line["n"] != number:
                return f"line {number}: is numbered {line['n']}: a line was taken out, put in or moved"
            if line["prev"] != last:
                return f"line {number}: does not follow the line before it"
            if _sealed(line)["hash"] != claimed:
                return f"line {number}: was changed after it was written"
        except (ValueError, TypeError, KeyError):
            return f"line {number}: is not a line of this log"
        last = claimed
        seen = seen or (number == must["n"] and last == must["hash"])
    if not seen:
        return f"line {must['n']}: is not the one that egress.head vouches for; the log has {number} lines"
    return None


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log, unverified."""
    return [json.loads(line) for line in complete_lines(path)[0]] if path.exists() else []


def head_of(path: Path) -> Path:
    """Where the last line's number and hash are kept."""
    return path.with_suffix(".head")


def _sealed(line: Mapping[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in line.items() if key != "hash"}
    return {**body, "hash": hashlib.sha256(_encode(body)).hexdigest()}


def _encode(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":"), sort_keys=True).encode()
