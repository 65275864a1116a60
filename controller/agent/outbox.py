"""What is still to be told? Events and samples on the disk, until the controller has them.

Events are never dropped. Samples are, the oldest first, once they have outgrown their bound;
what was lost that way is counted, and told with its time. What is sent goes under a number that
is on the disk before it is sent, so that whoever took it and could not say so knows it again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cramjam
import numpy as np

from controller.agent.records import Fact, Told
from controller.history.samples import Batch, from_msgpack_body, to_msgpack_body
from controller.observe.cloudevents import EventType
from controller.settings import safe_directory

log = logging.getLogger(__name__)

FILE = "outbox.db"
#: Refused events that are remembered, to be shown.
REFUSALS = 100
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, fact TEXT NOT NULL, body TEXT);
CREATE TABLE IF NOT EXISTS tick (
    number INTEGER PRIMARY KEY AUTOINCREMENT, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
    count INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS told (vm TEXT PRIMARY KEY, ports TEXT NOT NULL, migration TEXT)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusal (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, fact TEXT NOT NULL,
    cause TEXT NOT NULL);
"""


class OutboxBusy(Exception):  # noqa: N818
    """Another agent has the outbox."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that waits: `body` is what goes out, once that is settled."""

    number: int
    fact: Fact
    body: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Package:
    """Samples that go out together, as `sequence` of `sender`; `last` is the number of the
    newest of them."""

    sender: str
    sequence: int
    last: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Samples that were dropped: how many values, and of which time (Unix seconds)."""

    values: int
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Depth:
    """How much waits: events, samples (ticks, values, bytes), and the time of the oldest."""

    events: int
    ticks: int
    values: int
    bytes: int
    oldest: float | None


class Outbox:
    """The queue in `directory`, of at most `limit` bytes of samples. Raises OutboxBusy where
    another process has it, OSError and sqlite3.Error where the disk refuses. Methods may be
    called from any thread."""

    def __init__(self, directory: Path, limit: int, new_id: Callable[[], str] | None = None):
        self.directory = safe_directory(directory)
        self._limit = limit
        self._new_id = new_id or (lambda: uuid.uuid4().hex)
        self._lock = threading.RLock()
        self._held = _hold(directory / "lock")
        #: Set whenever something new is to be sent.
        self.filled = threading.Event()
        try:
            self._db = _opened(directory / FILE)
            self._bytes = int(self._one("SELECT coalesce(sum(bytes), 0) FROM tick"))
            if self._meta("sender") is None:
                self.renumber()
        except BaseException:
            os.close(self._held)
            raise

    def close(self) -> None:
        """Let others have it."""
        with self._lock:
            self._db.close()
            os.close(self._held)

    # Events

    def tell(self, facts: Sequence[Fact], told: Mapping[str, Told | None] | None = None) -> None:
        """Have `facts` sent, and note what the controller will then have been told of VMs
        (None: nothing); both or neither."""
        with self._transaction():
            for fact in facts:
                self._db.execute("INSERT INTO event (fact) VALUES (?)", (_text(asdict(fact)),))
            for vm, after in (told or {}).items():
                self._note(vm, after)
        if facts:
            self.filled.set()

    def told(self) -> dict[str, Told]:
        """What the controller was told of the VMs here, or will be by what waits."""
        with self._lock:
            rows = self._db.execute("SELECT vm, ports, migration FROM told").fetchall()
        return {vm: Told(tuple(json.loads(ports)), migration) for vm, ports, migration in rows}

    def forget(self, vm: str) -> None:
        """The controller knows nothing of that VM here, and is to be told anew."""
        with self._transaction():
            self._note(vm, None)

    def events(self, limit: int) -> list[Waiting]:
        """The oldest events that wait."""
        with self._lock:
            rows = self._db.execute(
                "SELECT number, fact, body FROM event ORDER BY number LIMIT ?", (limit,)
            ).fetchall()
        return [
            Waiting(number, _fact(fact), None if body is None else json.loads(body))
            for number, fact, body in rows
        ]

    def settle(self, bodies: Mapping[int, Mapping[str, Any] | None]) -> None:
        """What goes out for events, by number, before it does; None: it needs not be told."""
        with self._transaction():
            for number, body in bodies.items():
                if body is None:
                    self._db.execute("DELETE FROM event WHERE number = ?", (number,))
                    continue
                self._db.execute(
                    "UPDATE event SET body = ? WHERE number = ?", (_text(body), number)
                )

    def took(self, numbers: Sequence[int]) -> None:
        """The controller has these events."""
        with self._transaction():
            for number in numbers:
                self._db.execute("DELETE FROM event WHERE number = ?", (number,))

    def refused(self, waiting: Waiting, at: float, cause: str) -> None:
        """The controller does not want this event, ever: it is kept to be shown."""
        with self._transaction():
            self._db.execute("DELETE FROM event WHERE number = ?", (waiting.number,))
            self._db.execute(
                "INSERT INTO refusal (at, fact, cause) VALUES (?, ?, ?)",
                (at, _text(asdict(waiting.fact)), cause),
            )
            self._db.execute(
                "DELETE FROM refusal WHERE number <= (SELECT max(number) FROM refusal) - ?",
                (REFUSALS,),
            )
            self._note(waiting.fact.vm, None)

    def refusals(self) -> list[tuple[float, Fact, str]]:
        """Events that were refused, the newest last: when, what, why."""
        with self._lock:
            rows = self._db.execute("SELECT at, fact, cause FROM refusal ORDER BY number")
            return [(at, _fact(fact), cause) for at, fact, cause in rows.fetchall()]

    # Samples

    def add(self, batch: Batch) -> Lost | None:
        """Have samples sent. Returns what had to be dropped for that, if anything."""
        body = bytes(cramjam.zstd.compress(to_msgpack_body(batch), level=1))
        count = int(np.count_nonzero(batch.given))
        first, last = int(batch.times.min()), int(batch.times.max())
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT INTO tick (first_ms, last_ms, count, bytes, body) VALUES (?, ?, ?, ?, ?)",
                (first, last, count, len(body), body),
            )
            size = self._bytes + len(body)
            size, lost = self._drop(size)
        self._bytes = size
        self.filled.set()
        return lost

    def package(self, values: int) -> Package | None:
        """The oldest samples that wait, about `values` of them; the same again until they are
        `delivered`. None where nothing waits."""
        with self._transaction():
            under_way = self._meta("under_way")
            if under_way is None:
                last = self._last_of(values)
                if last is None:
                    return None
                sequence = int(str(self._meta("sequence") or 0)) + 1
                self._set("sequence", sequence)
                under_way = f"{sequence}:{last}"
                self._set("under_way", under_way)
            sequence, last = map(int, str(under_way).split(":"))
            rows = self._db.execute(
                "SELECT body FROM tick WHERE number <= ? ORDER BY number", (last,)
            ).fetchall()
            if not rows:  # all of it was dropped
                self._set("under_way", None)
                return self.package(values)
        batches = tuple(from_msgpack_body(bytes(cramjam.zstd.decompress(b))) for (b,) in rows)
        return Package(str(self._meta("sender")), sequence, last, batches)

    def delivered(self, package: Package) -> None:
        """The controller has these samples, or will never take them."""
        with self._transaction():
            gone = self._one(
                "SELECT coalesce(sum(bytes), 0) FROM tick WHERE number <= ?", package.last
            )
            self._db.execute("DELETE FROM tick WHERE number <= ?", (package.last,))
            self._set("under_way", None)
        self._bytes -= int(gone)
        with self._lock:
            self._db.execute("PRAGMA incremental_vacuum")

    def split(self, package: Package) -> bool:
        """Send fewer samples at once: whether that is possible. What was under way had no
        effect."""
        if len(package.batches) < 2:
            return False
        with self._transaction():
            half = package.last - len(package.batches) // 2
            self._set("under_way", f"{package.sequence}:{half}")
        return True

    def renumber(self) -> None:
        """Begin numbering anew, under a new name: the old numbers cannot be used any more."""
        with self._transaction():
            self._set("sender", f"agent-{self._new_id()}")
            self._set("sequence", 0)
            self._set("under_way", None)

    def depth(self) -> Depth:
        """How much waits."""
        with self._lock:
            events = int(self._one("SELECT count(*) FROM event"))
            row = self._db.execute(
                "SELECT count(*), coalesce(sum(count), 0), min(first_ms) FROM tick"
            ).fetchone()
        oldest = None if row[2] is None else row[2] / 1000
        return Depth(events, row[0], row[1], self._bytes, oldest)

    def lost(self) -> Lost | None:
        """All samples that were ever dropped here."""
        with self._lock:
            found = self._meta("lost")
        return None if found is None else Lost(*json.loads(str(found)))

    # Anything else to remember

    def recall(self, name: str) -> str | None:
        """What was kept under a name."""
        with self._lock:
            found = self._meta(f"kept:{name}")
        return None if found is None else str(found)

    def keep(self, name: str, value: str) -> None:
        """Keep something small under a name."""
        with self._transaction():
            self._set(f"kept:{name}", value)

    # Helpers; each is called with the lock held.

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            if self._db.in_transaction:  # part of another
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _last_of(self, values: int) -> int | None:
        found, last = 0, None
        for number, count in self._db.execute("SELECT number, count FROM tick ORDER BY number"):
            if last is not None and found + count > values:
                break
            found, last = found + count, number
        return last

    def _drop(self, size: int) -> tuple[int, Lost | None]:
        """Drop the oldest until `size` is within the bound; what is left, and what was lost."""
        if size <= self._limit:
            return size, None
        values, first, last = 0, 0, 0
        rows = self._db.execute(
            "SELECT number, first_ms, last_ms, count, bytes FROM tick ORDER BY number"
        )
        newest = int(self._one("SELECT max(number) FROM tick"))
        for number, begin, end, count, bytes_ in rows.fetchall():
            if size <= self._limit or number == newest:
                break
            self._db.execute("DELETE FROM tick WHERE number = ?", (number,))
            size -= bytes_
            first = begin if not values else min(first, begin)
            values, last = values + count, max(last, end)
        if not values:
            return size, None
        return size, self._note_lost(Lost(values, first / 1000, last / 1000))

    def _note_lost(self, lost: Lost) -> Lost:
        before = self._meta("lost")
        total = [lost.values, lost.first, lost.last]
        if before is not None:
            had = Lost(*json.loads(str(before)))
            total = [had.values + lost.values, min(had.first, lost.first), max(had.last, lost.last)]
        self._set("lost", _text(total))
        return lost

    def _note(self, vm: str, after: Told | None) -> None:
        if after is None:
            self._db.execute("DELETE FROM told WHERE vm = ?", (vm,))
            return
        self._db.execute(
            "INSERT OR REPLACE INTO told VALUES (?, ?, ?)",
            (vm, _text(after.ports), after.migration),
        )

    def _meta(self, name: str) -> object:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def _set(self, name: str, value: object) -> None:
        if value is None:
            self._db.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _one(self, query: str, *values: object) -> Any:
        return self._db.execute(query, values).fetchone()[0]


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _fact(text: str) -> Fact:
    data = json.loads(text)
    lists = {name: tuple(data.pop(name)) for name in ("ports", "macs")}
    return Fact(**{**data, **lists, "type": EventType(data["type"])})


def _hold(file: Path) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutboxBusy(f"another agent works in {file.parent}") from None
    return descriptor


def _opened(file: Path) -> sqlite3.Connection:
    try:
        return _connected(file)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # the disk, not the file
            raise
        aside = file.with_name(f"{file.name}.damaged")
        file.replace(aside)
        log.error(
            "what waited to be told cannot be read and is set aside",
            extra={"file": str(aside), "cause": str(error)},
        )
        return _connected(file)


def _connected(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its check fails")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
