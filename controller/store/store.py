"""The state of record: one database, shared by processes, with a feed of every change."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, delete, func, select, update

from controller.model.state import Change, State
from controller.settings import masked
from controller.store import schema
from controller.store.backend import Backend
from controller.store.bells import Bell
from controller.store.copying import Copied, copy
from controller.store.errors import FeedCompacted, StoreCorrupt, StoreUnavailable
from controller.store.records import AuditEntry, Progress, Token
from controller.store.shapes import SHAPES
from controller.store.sqlite import RESTORE, Sqlite, busy
from controller.store.transaction import Transaction

#: Feed entries that one transaction of `compact` removes: others write in between.
_COMPACT_STEP = 5_000

_COUNTERS = select(schema.counter.c.name, schema.counter.c.value).where(
    schema.counter.c.name.in_(["revision", "compacted"])
)
_BODIES = {kind: select(shape.table.c.body) for kind, shape in SHAPES.items()}
_FEED = select(
    schema.feed.c.revision,
    schema.feed.c.until,
    schema.feed.c.kind,
    schema.feed.c.key,
    schema.feed.c.body,
).order_by(schema.feed.c.revision)
_FEED_AFTER = _FEED.where(schema.feed.c.revision > bindparam("after")).limit(bindparam("limit"))
_FEED_UNTIL = _FEED.where(
    schema.feed.c.revision > bindparam("after"), schema.feed.c.revision <= bindparam("until")
)
_PROGRESS = select(schema.progress)
_TOKEN = select(schema.token).where(schema.token.c.digest == bindparam("digest"))


class Store:
    """The store as one process sees it. Safe for threads and for eventlet's greenthreads;
    not to be carried over a fork: open another in the child."""

    def __init__(self, backend: Backend, engine: Engine, feed_keep: int) -> None:
        self._backend = backend
        self._engine = engine
        self._durable = engine.execution_options(write=True, durable=True)
        self._quick = engine.execution_options(write=True, durable=False)
        self._feed_keep = feed_keep
        self._writer = threading.Lock()
        self._bells = backend.bells()

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float = 10, feed_keep: int = 100_000) -> Store:
        """Open the store at `url`, made where there is none and upgraded where it is older.

        Raises StoreCorrupt (found by a check of the whole file), SchemaTooNew, StoreFull,
        StoreReadOnly, StoreBusy, or StoreUnavailable where there is no such engine."""
        backend = _backend(url, busy_timeout_s)
        engine = backend.open()
        try:
            return cls(backend, engine, feed_keep)
        except BaseException:
            engine.dispose()
            raise

    def close(self) -> None:
        """Close the connections and the bells. May be called twice."""
        self._bells.close()
        self._engine.dispose()

    @property
    def revision(self) -> int:
        """The newest revision."""
        with self._reading() as connection:
            return _counters(connection)[0]

    def snapshot(self) -> State:
        """Everything, as it is at one revision."""
        state = State()
        with self._reading() as connection:
            state.revision = _counters(connection)[0]
            bodies = {kind: connection.scalars(query).all() for kind, query in _BODIES.items()}
        for kind, shape in SHAPES.items():
            table = state.table(kind)
            for body in bodies[kind]:
                record = shape.load(body)
                table[record.key] = record
        return state

    def changes(self, after: int, limit: int = 1000) -> list[Change]:
        """The changes since revision `after`, ascending: about `limit`, and more where else a
        transaction would be cut in two. FeedCompacted where the feed does not reach back to
        `after`, or `after` is ahead of the store (a backup was restored)."""
        with self._reading() as connection:
            rows = _changes(connection, after, limit)
        return [self._change(*row) for row in rows]

    def news(self, after: int, limit: int = 1000) -> tuple[list[Change], dict[str, Progress]]:
        """`changes` and `progress` in one look. What the progress speaks of is in the feed."""
        with self._reading() as connection:
            progress = connection.execute(_PROGRESS).all()
            rows = _changes(connection, after, limit)
        changes = [self._change(*row) for row in rows]
        return changes, {row.datapath: Progress(**row._mapping) for row in progress}

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        """Change the store: all that is done inside, or nothing if it ends by an exception.

        One writer at a time, over all processes. With `durable`, what was committed is on
        the disk when this returns; without, the power may take it along. Not to be nested.
        Raises StoreBusy, StoreFull, StoreReadOnly, StoreCorrupt, StoreUnavailable."""
        with self._writing(self._durable if durable else self._quick) as connection:
            transaction = Transaction(connection)
            yield transaction
            transaction.finish()
            if transaction.dirty:
                self._backend.announce(connection)
        if transaction.dirty:
            self._bells.ring()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read at one moment, by statements on the tables of `schema`: for what is kept there
        beside the nouns. Raises StoreError."""
        with self._reading() as connection:
            yield connection

    def bell(self, name: str) -> Bell:
        """A bell that rings when another store than this, in whatever process, commits."""
        return self._bells.bell(name)

    def set_progress(self, rows: Iterable[Progress]) -> None:
        """Replace the progress of the datapaths that `rows` are about. Not durable."""
        with self.transaction(durable=False) as transaction:
            transaction.report(list(rows))

    def progress(self) -> dict[str, Progress]:
        """The progress of every datapath that ever reported, by datapath id."""
        with self._reading() as connection:
            rows = connection.execute(_PROGRESS).all()
        return {row.datapath: Progress(**row._mapping) for row in rows}

    def token(self, digest: str) -> Token | None:
        """The token whose secret has this SHA-256 (hex). Whether it expired is for the
        caller to see."""
        with self._reading() as connection:
            row = connection.execute(_TOKEN, {"digest": digest}).first()
        return None if row is None else Token(**row._mapping)

    def audit_log(self, limit: int = 100, before: int | None = None) -> list[AuditEntry]:
        """At most `limit` entries of the audit log, newest first, of those with an id below
        `before`."""
        table = schema.audit
        query = select(table).order_by(table.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.id < before)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [AuditEntry(**{**row._mapping, "detail": json.loads(row.detail)}) for row in rows]

    def compact(self) -> int:
        """Remove the oldest feed entries beyond `feed_keep`; returns how many."""
        removed = 0
        while True:
            with self._writing(self._quick) as connection:
                newest, compacted = _counters(connection)
                upto = min(newest - self._feed_keep, compacted + _COMPACT_STEP)
                if upto <= compacted:
                    return removed
                feed, counter = schema.feed, schema.counter
                gone = connection.execute(delete(feed).where(feed.c.revision <= upto))
                connection.execute(
                    update(counter).where(counter.c.name == "compacted").values(value=upto)
                )
                removed += gone.rowcount

    def checkpoint(self) -> None:
        """Do now, for nobody to wait for, what some commit would else have to do: to be called
        every few seconds by a process that has time."""
        self._backend.checkpoint()

    def check(self) -> None:
        """Raise StoreCorrupt where the database is damaged. Reads all of it."""
        self._backend.check()
        revision = schema.feed.c.revision
        with self._reading() as connection:
            newest, compacted = _counters(connection)
            extent = select(func.count(), func.min(revision), func.max(revision))
            held, first, last = connection.execute(extent).one()
        if (held, first or newest + 1, last or newest) != (
            newest - compacted,
            compacted + 1,
            newest,
        ):
            cause = f"it has {held} changes, of revisions {first} to {last}, and not all those "
            raise StoreCorrupt("change feed", f"{cause}after {compacted} up to {newest}", RESTORE)

    def backup(self, path: Path) -> None:
        """Write a consistent copy to the file `path`, which must not exist, while others go
        on working. StoreError where that cannot be."""
        self._backend.backup(path)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _connected(self._backend, self._engine) as connection:
            yield connection

    @contextmanager
    def _writing(self, engine: Engine) -> Iterator[Connection]:
        # The lock keeps the threads of this process from polling for the database's own.
        timeout = self._backend.busy_timeout_s
        if not self._writer.acquire(timeout=timeout):
            raise busy(self._backend.place, timeout)
        try:
            with self._backend.errors(), self._backend.writing(engine) as connection:
                yield connection
        finally:
            self._writer.release()

    def _change(self, revision: int, _: int, kind: str, key: str, body: str | None) -> Change:
        if kind not in SHAPES:
            raise StoreCorrupt("change feed", f"there is no kind of record {kind!r}", RESTORE)
        record = None if body is None else SHAPES[kind].load(body)
        return Change(revision, kind, key, record)


def backup(url: str, path: Path) -> None:
    """Copy the store at `url` to the file `path`, an SQLite database, whether or not others have
    it open."""
    _backend(url, busy_timeout_s=10).backup(path)


def copy_store(source: str, target: str, *, replace: bool = False) -> Copied:
    """Copy all of the store at the URL `source` to the one at `target`, and compare the two.

    The copy is of one revision, while others may go on working at the source. StoreError where
    the target is not empty and `replace` is not given, or where either cannot be used; the
    target is then as it was."""
    one, other = _backend(source, busy_timeout_s=10), _backend(target, busy_timeout_s=10)
    with ExitStack() as stack:
        ours = one.open(make=False)
        stack.callback(ours.dispose)
        theirs = other.open().execution_options(write=True, durable=True)
        stack.callback(theirs.dispose)
        reading = stack.enter_context(_connected(one, ours))
        with other.errors(), other.writing(theirs) as writing:
            copied = copy(reading, writing, other.place, replace=replace)
            other.announce(writing)
        stack.enter_context(closing(other.bells())).ring()
    return copied


@contextmanager
def _connected(backend: Backend, engine: Engine) -> Iterator[Connection]:
    with backend.errors(), engine.begin() as connection:
        yield connection


def _changes(connection: Connection, after: int, limit: int) -> list[Row[*tuple[Any, ...]]]:
    rows = list(connection.execute(_FEED_AFTER, {"after": after, "limit": max(limit, 1)}))
    if not rows or rows[0].revision != after + 1:
        newest, compacted = _counters(connection)
        if not compacted <= after <= newest:
            raise FeedCompacted(after, compacted + 1)
    if not rows:
        return []
    last = rows[-1]
    if last.until > last.revision:
        rest = {"after": last.revision, "until": last.until}
        rows += connection.execute(_FEED_UNTIL, rest)
    return rows


def _counters(connection: Connection) -> tuple[int, int]:
    """The newest revision, and the newest that the feed lost."""
    values = dict(connection.execute(_COUNTERS).all())
    return values["revision"], values["compacted"]


def _sqlite(url: str, busy_timeout_s: float) -> Backend:
    return Sqlite(url, busy_timeout_s)


def _postgresql(url: str, busy_timeout_s: float) -> Backend:
    # Imported here, because who keeps the store in a file needs no client of PostgreSQL.
    from controller.store.postgresql import Postgresql

    return Postgresql(url, busy_timeout_s)


#: The engines by the first word of their URLs.
_BACKENDS = {"sqlite": _sqlite, "postgresql": _postgresql}


def _backend(url: str, busy_timeout_s: float) -> Backend:
    engine = url.partition(":")[0].partition("+")[0]
    if engine not in _BACKENDS:
        raise StoreUnavailable(
            f"store.url {masked(url)}",
            "there is no such engine",
            f"use one of {', '.join(f'{name}://' for name in _BACKENDS)}",
        )
    return _BACKENDS[engine](url, busy_timeout_s)
