"""The queues on disk: SQLite, one file, one writer.

Only rows and statements live here; what they mean is the broker's. A ``Batch`` is written in one transaction with
an fsync at its end (``synchronous=FULL``), so it is there whole after a crash or not at all. Keys are in it, in plain
text: nobody but its owner may read it.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from servicebus_emulator.codec import decode, encode
from servicebus_emulator.config import QueueSettings, rules_from_json, rules_to_json
from servicebus_emulator.private import make_private
from servicebus_emulator.record import Message, State
from servicebus_emulator.rights import Rule

VERSION = 4
_SCHEMA = """
CREATE TABLE queues (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, last_sequence INTEGER NOT NULL,
    settings TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, configured TEXT
) STRICT;
CREATE TABLE namespace (rules TEXT NOT NULL, restricted INTEGER NOT NULL) STRICT;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, sequence INTEGER NOT NULL, message_id TEXT NOT NULL,
    enqueued_at INTEGER NOT NULL, state INTEGER NOT NULL, dead INTEGER NOT NULL, scheduled_for INTEGER,
    ttl INTEGER, delivery_count INTEGER NOT NULL, lock BLOB, locked_until INTEGER,
    added BLOB
) STRICT;
CREATE TABLE payloads (id INTEGER PRIMARY KEY, payload BLOB NOT NULL) STRICT;
CREATE TABLE seen (
    queue INTEGER NOT NULL, message_id TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (queue, message_id)
) STRICT, WITHOUT ROWID;
"""


class StoreError(Exception):
    """The data directory cannot be used; the text says why."""


@dataclass(slots=True)
class Batch:
    """Rows to write in one transaction."""

    dropped: list[tuple[int]] = field(default_factory=list)  # queues, with all that is in them
    queues: list[tuple[Any, ...]] = field(default_factory=list)
    messages: list[tuple[Any, ...]] = field(default_factory=list)
    payloads: list[tuple[int, bytes]] = field(default_factory=list)
    deleted: list[tuple[int]] = field(default_factory=list)
    sequences: list[tuple[int, int]] = field(default_factory=list)  # last sequence, queue
    seen: list[tuple[int, str, int]] = field(default_factory=list)
    forgotten: list[tuple[int, int]] = field(default_factory=list)  # queue, not after


@dataclass(frozen=True, slots=True)
class StoredQueue:
    key: int
    name: str
    settings: QueueSettings
    last_sequence: int
    created_at: int
    updated_at: int
    configured: str | None
    """The digest of what the configuration file said of it at the last start; None when it was not in there."""


def message_row(queue: int, message: Message) -> tuple[Any, ...]:
    return (
        message.id,
        queue,
        message.sequence,
        message.message_id,
        message.enqueued_at,
        int(message.state),
        int(message.dead),
        message.scheduled_for,
        message.ttl,
        message.delivery_count,
        message.lock.bytes if message.lock is not None else None,
        message.locked_until,
        encode(message.added) if message.added else None,
    )


class Store:
    """Opened by one thread and then used by one other: never by two at once."""

    def __init__(self, directory: Path) -> None:
        make_private(directory, ("queues.sqlite", "queues.sqlite-wal", "queues.sqlite-shm"))
        self._db = sqlite3.connect(
            directory / "queues.sqlite", isolation_level=None, check_same_thread=False, timeout=0.2
        )
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN IMMEDIATE")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise StoreError(
                    f"{directory} was written by another version of this program ({version}, and this is {VERSION}): "
                    "give another --data, and keep it for that version"
                )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"{directory} cannot be opened (is it in use?): {error}") from error

    def close(self) -> None:
        self._db.close()

    # ------------------------------------------------------------------------------------------- reading

    def queues(self) -> list[StoredQueue]:
        rows = self._db.execute(
            "SELECT id, name, settings, last_sequence, created_at, updated_at, configured FROM queues ORDER BY id"
        )
        return [StoredQueue(key, name, QueueSettings.from_json(text), *rest) for key, name, text, *rest in rows]

    def access(self) -> tuple[tuple[Rule, ...], bool]:
        """The namespace's rules, and whether rules restrict anybody."""
        row = self._db.execute("SELECT rules, restricted FROM namespace").fetchone()
        return ((), False) if row is None else (rules_from_json(json.loads(row[0])), bool(row[1]))

    def messages(self, queue: int) -> Iterable[Message]:
        rows = self._db.execute(
            "SELECT id, sequence, message_id, enqueued_at, state, dead, scheduled_for, ttl, delivery_count, lock,"
            " locked_until, added, payload"
            " FROM messages JOIN payloads USING (id) WHERE queue = ? ORDER BY sequence",
            (queue,),
        )
        for row in rows:
            identity, sequence, message_id, enqueued, state, dead, scheduled, ttl, count, lock, until, *rest = row
            added, payload = rest
            yield Message(
                id=identity,
                sequence=sequence,
                message_id=message_id,
                payload=payload,
                enqueued_at=enqueued,
                state=State(state),
                dead=bool(dead),
                scheduled_for=scheduled,
                ttl=ttl,
                delivery_count=count,
                lock=UUID(bytes=lock) if lock is not None else None,
                locked_until=until,
                added=decode(added)[0] if added is not None else {},
            )

    def seen(self, queue: int) -> list[tuple[str, int]]:
        return self._db.execute("SELECT message_id, at FROM seen WHERE queue = ? ORDER BY at", (queue,)).fetchall()

    def last_id(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM messages").fetchone()[0])

    # ------------------------------------------------------------------------------------------- writing

    def put_queue(self, name: str, settings: QueueSettings, at: int = 0, configured: str | None = None) -> None:
        """Create the queue, or give the one that is there these settings. Before anybody uses the store."""
        self._db.execute(
            "INSERT INTO queues (name, last_sequence, settings, created_at, updated_at, configured)"
            " VALUES (?1, 0, ?2, ?3, ?3, ?4)"
            " ON CONFLICT (name) DO UPDATE SET settings = excluded.settings, configured = excluded.configured,"
            " updated_at = iif(settings = excluded.settings, updated_at, excluded.updated_at)",
            (name, settings.to_json(), at, configured),
        )

    def put_access(self, rules: Iterable[Rule], *, restricted: bool) -> None:
        """The namespace's rules, and whether rules restrict anybody. Before anybody uses the store."""
        self._db.execute("DELETE FROM namespace")
        self._db.execute("INSERT INTO namespace VALUES (?, ?)", (json.dumps(rules_to_json(rules)), int(restricted)))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """All that is put inside, or nothing. Raises StoreError when it cannot be written."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreError(f"nothing can be written there: {error}") from error
        except BaseException:
            self._roll_back()
            raise

    def write(self, batch: Batch) -> None:
        """All of it, durably, or an exception and nothing."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            if batch.dropped:
                of_it = "IN (SELECT id FROM messages WHERE queue = ?)"
                db.executemany(f"DELETE FROM payloads WHERE id {of_it}", batch.dropped)  # noqa: S608 - only marks
                for table, column in (("messages", "queue"), ("seen", "queue"), ("queues", "id")):
                    db.executemany(f"DELETE FROM {table} WHERE {column} = ?", batch.dropped)  # noqa: S608 - only marks
            if batch.queues:
                db.executemany(
                    "INSERT INTO queues (id, name, last_sequence, settings, created_at, updated_at)"
                    " VALUES (?, ?, 0, ?, ?, ?) ON CONFLICT (id)"
                    " DO UPDATE SET settings = excluded.settings, updated_at = excluded.updated_at",
                    batch.queues,
                )
            if batch.payloads:
                db.executemany("INSERT INTO payloads VALUES (?, ?)", batch.payloads)
            if batch.messages:
                marks = ", ".join("?" * 13)
                db.executemany(f"INSERT OR REPLACE INTO messages VALUES ({marks})", batch.messages)  # noqa: S608 - only marks
            if batch.deleted:
                db.executemany("DELETE FROM messages WHERE id = ?", batch.deleted)
                db.executemany("DELETE FROM payloads WHERE id = ?", batch.deleted)
            if batch.sequences:
                db.executemany("UPDATE queues SET last_sequence = ? WHERE id = ?", batch.sequences)
            if batch.forgotten:
                db.executemany("DELETE FROM seen WHERE queue = ? AND at <= ?", batch.forgotten)
            if batch.seen:
                db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", batch.seen)
            db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # a full disk has ended it already
            self._db.execute("ROLLBACK")
