"""The answers file: an append-only table of events in SQLite.

WAL journal and synchronous=FULL: when :meth:`Store.append` returns, the event has reached the disk, so
neither ``kill -9`` nor a power cut loses an answer that was acknowledged. Rows are never changed: triggers
refuse it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pfungst.errors import DataError

FILE_NAME = "labels.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    person   TEXT NOT NULL,
    item     TEXT NOT NULL,
    sequence INTEGER NOT NULL CHECK (sequence >= 0),
    action   TEXT NOT NULL CHECK (action IN ('answer', 'skip', 'undo')),
    answer   TEXT,
    time     TEXT NOT NULL,
    CHECK ((action = 'answer') = (answer IS NOT NULL)),
    UNIQUE (person, item, sequence)
) STRICT;
CREATE TABLE IF NOT EXISTS names (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    person   TEXT NOT NULL,
    item     TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    name     TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS events_stay BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER IF NOT EXISTS events_are_kept BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that one person did to one item.

    Args:
        id: order of storing.
        person: labeller's name, or the adjudicator's reserved one.
        item: id of the item.
        sequence: how many events this person had on this item before.
        action: "answer", "skip" or "undo"; answer: the answer given, None otherwise.
        time: UTC, ISO 8601.
    """

    id: int
    person: str
    item: str
    sequence: int
    action: str
    answer: str | None
    time: str


class NotStored(DataError):
    """An event could not be written; whoever gave it must be told."""


class Store:
    """The answers file of a task folder.

    Args:
        path: the SQLite file, created when absent, readable by its owner only.
        digest: identifies what the answers belong to; another one in the file is refused.
        patience: seconds to wait while another program holds the file.

    Raises:
        DataError: the file cannot be opened or written, is no answers file, or belongs to another task.
    """

    def __init__(self, path: str | os.PathLike[str], digest: str, patience: float = 5.0) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            if not self.path.exists():
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(
                self.path,
                timeout=patience,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=32,
            )
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from None
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            with self._transaction() as db:
                db.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_hex(32),))
                db.execute("INSERT OR IGNORE INTO meta VALUES ('digest', ?)", (digest,))
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
            self._open = self._there()  # the transaction has made the journal
        except (OSError, sqlite3.Error) as error:
            self._db.close()
            raise self._trouble(error) from None
        if meta["digest"] != digest:
            self._db.close()
            raise DataError(
                f"{self.path} holds answers about another model or another kind of task",
                "move that file away to start anew, or restore the label-task.json that it belongs to",
            )
        self.secret = bytes.fromhex(meta["secret"])

    def append(
        self, person: str, item: str, sequence: int, action: str, answer: str | None = None, name: str = ""
    ) -> bool:
        """Write one event, with the name given to what is shown, and wait until it is on the disk.

        Returns:
            False when this person's event of this sequence on this item is there already; then nothing is
            written.

        Raises:
            NotStored: the file is read-only, locked by another program, deleted or replaced, or the disk is
                full.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._refuse_replaced()
        try:
            with self._transaction() as db:
                added = db.execute(
                    "INSERT INTO events (person, item, sequence, action, answer, time) "
                    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (person, item, sequence) DO NOTHING",
                    (person, item, sequence, action, answer, time),
                ).rowcount
                if added and name:
                    db.execute(
                        "INSERT INTO names (person, item, sequence, name) VALUES (?, ?, ?, ?)",
                        (person, item, sequence, name),
                    )
        except sqlite3.Error as error:
            raise self._trouble(error) from None
        self._refuse_replaced()
        return added == 1

    def since(self, last: int) -> list[Event]:
        """Events stored after the one with id ``last``, in order. Raises NotStored as :meth:`append`."""
        self._refuse_replaced()
        query = "SELECT id, person, item, sequence, action, answer, time FROM events WHERE id > ? ORDER BY id"
        try:
            with self._lock:
                return [Event(*row) for row in self._db.execute(query, (last,))]
        except sqlite3.Error as error:
            raise self._trouble(error) from None

    def names(self) -> dict[tuple[str, str, int], str]:
        """The names given, by person, item and sequence of the event. Raises NotStored as :meth:`append`."""
        self._refuse_replaced()
        try:
            with self._lock:
                found = self._db.execute("SELECT person, item, sequence, name FROM names")
                return {(person, item, sequence): name for person, item, sequence, name in found}
        except sqlite3.Error as error:
            raise self._trouble(error) from None

    def close(self) -> None:
        """Close the file; every answer is in it already."""
        with self._lock:
            self._db.close()

    def _there(self) -> list[tuple[int, int]]:
        """Device and inode of the answers file and of its journal, which holds the newest answers."""
        found = []
        for end in ("", "-wal"):  # without a journal on file systems that cannot have it
            with suppress(FileNotFoundError):
                there = os.stat(f"{self.path}{end}")
                found.append((there.st_dev, there.st_ino))
        return found

    def _refuse_replaced(self) -> None:
        """Raise NotStored unless what is at the path is what was opened: answers vanish with it."""
        with suppress(OSError):
            if self._there() == self._open:
                return
        raise NotStored(
            f"the answers file {self.path.name} was deleted or replaced while it was in use",
            f"put {self.path} (with its -wal) back, or start the server anew to use what is there",
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _trouble(self, error: Exception) -> NotStored:
        text = str(error)
        if "locked" in text or "busy" in text:
            return NotStored(
                f"the answers file {self.path.name} is locked by another program",
                "close the program that has it open (a database viewer, a backup, a second server), then "
                "answer again",
            )
        if "readonly" in text or "read-only" in text or isinstance(error, PermissionError):
            return NotStored(
                f"the answers file {self.path.name} is read-only, so nothing can be stored",
                f"make {self.path} and its folder writable, then answer again",
            )
        if "full" in text or "No space" in text:
            return NotStored(
                f"the disk is full, so nothing can be stored in {self.path.name}",
                "free some space, then answer again",
            )
        if "not a database" in text or "malformed" in text:
            return NotStored(
                f"{self.path.name} is not an answers file: {text}",
                f"restore {self.path} from a copy or move it away",
            )
        if "unable to open" in text:
            return NotStored(
                f"the answers file {self.path.name} cannot be opened",
                f"make {self.path} and its folder readable and writable",
            )
        return NotStored(
            f"the answers file {self.path.name} cannot be used: {text}", "look at the server's terminal"
        )
