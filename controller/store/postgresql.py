"""PostgreSQL under the store: all that is particular to this engine lies here and beside it.

A writer locks the row of the revision before it does anything else, so that there is one at
a time over all processes, and revisions are committed in their order. Readers see one snapshot.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from controller.settings import masked
from controller.store import schema
from controller.store.copying import copy
from controller.store.errors import (
    OutcomeUnknown,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
)
from controller.store.notices import CHANNEL, Notices
from controller.store.postgresql_connection import (
    PostgresqlConnection,
    alive,
    connect,
    parameters,
)
from controller.store.postgresql_errors import RESTORE, said, translated
from controller.store.sqlite import Sqlite, staged
from controller.store.upgrade import migrate, older, outdated

log = logging.getLogger(__name__)

#: Seconds for which the outcome of a commit is looked for whose connection broke.
SETTLE_S = 10.0
#: Seconds before another connection is tried after one failed: at first, and at most. Whoever
#: asks meanwhile is told at once.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
#: Connections that one process uses at the same time at most, its listening one apart.
_CONNECTIONS = 10
#: Under which all processes agree who makes the tables: "pleach" in ASCII.
_MAKING = 0x706C65616368
#: A writer that committed nothing for so long is none any more.
_WRITER_MEMORY_NS = 7 * 86_400 * 10**9

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Not READ WRITE: an operator's default_transaction_read_only is to be heard.
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_QUICK = "SET LOCAL synchronous_commit TO off"
_LOCK = "SELECT value FROM counter WHERE name = 'revision' FOR UPDATE"
_MAKE = f"{_WRITE}; SELECT pg_advisory_xact_lock({_MAKING})"

#: Others are notified, and a trace is left by which it can be told later whether the
#: transaction was committed: in one statement, for every commit has it. Nothing of what is
#: filled in comes from outside.
_ANNOUNCE = (
    "WITH mark AS (INSERT INTO counter (name, value) VALUES ('{writer}', {mark}) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value) "
    "SELECT pg_notify('{channel}', '{writer}')"
)
_FORGET = text("DELETE FROM counter WHERE name LIKE 'writer.%' AND value < :before")
_MARKED = select(schema.counter.c.value)
_PRESENT = text(
    "SELECT to_regclass('alembic_version') IS NOT NULL AND to_regclass('feed') IS NOT NULL, "
    "(SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND relkind IN ('r', 'p')), current_schema()"
)


class Postgresql:
    """One database of a PostgreSQL server, 14 or later."""

    def __init__(self, url: str, busy_timeout_s: float) -> None:
        self._said = parameters(url)
        self.place = masked(url)
        self.busy_timeout_s = busy_timeout_s
        #: Names what this store commits: its row in the table of counters.
        self._writer = f"writer.{secrets.token_hex(6)}"
        self._lock = threading.Lock()
        self._refused: StoreError | None = None
        self._pause_s = 0.0
        self._not_before = 0.0
        self._engine: Engine | None = None
        self._forgotten = False

    def open(self, *, make: bool = True) -> Engine:
        """An engine on the database; with `make`, its tables are made where there are none.

        Raises StoreUnavailable, StoreCorrupt, SchemaTooNew, StoreReadOnly or StoreBusy."""
        self._engine = self._prepared(make)
        return self._engine

    def bells(self) -> Notices:
        """Bells that ring by NOTIFY."""
        return Notices(self._connect, self._writer)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what psycopg raises into StoreError."""
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.Error):
                raise translated(self.place, error.orig, self.busy_timeout_s) from error
            raise
        except psycopg.Error as error:
            raise translated(self.place, error, self.busy_timeout_s) from error
        except PoolTimeout as error:
            cause = f"{_CONNECTIONS} connections were in use for {self.busy_timeout_s:g} s"
            raise StoreBusy(self.place, cause, "try again, with fewer requests at once") from error

    @contextmanager
    def writing(self, engine: Engine) -> Iterator[Connection]:
        """A transaction with the execution options of `engine`. Where the connection breaks
        while it is committed, what became of it is looked up. OutcomeUnknown where it cannot
        be, StoreUnavailable where nothing was kept."""
        mark: int | None = None
        try:
            with engine.begin() as connection:
                connection.info.pop("mark", None)
                yield connection
                mark = connection.info.get("mark")
        except DBAPIError as error:
            if mark is None or not error.connection_invalidated:
                raise
            self._settle(engine, mark, said(error.orig or error))

    def announce(self, connection: Connection) -> None:
        """Have the commit notify others, and leave a mark."""
        mark = time.time_ns()
        if not self._forgotten:
            connection.execute(_FORGET, {"before": mark - _WRITER_MEMORY_NS})
            self._forgotten = True
        raw = _raw(connection)
        raw.last_words = _ANNOUNCE.format(channel=CHANNEL, writer=self._writer, mark=mark)
        connection.info["mark"] = mark

    def checkpoint(self) -> None:
        """The server does it by itself."""

    def check(self) -> None:
        """Read every row, in the server. StoreCorrupt where one cannot be read."""
        with self.errors(), self._opened() as engine, engine.begin() as connection:
            for table in schema.metadata.sorted_tables:
                connection.exec_driver_sql(
                    f"SELECT sum(length(t::text)) FROM {table.name} t"  # noqa: S608 - our own names
                ).all()

    def backup(self, path: Path) -> None:
        """Copy the store into the new SQLite database `path` while others go on working."""
        with staged(path) as partial, self.errors():
            file = Sqlite(f"sqlite:///{partial.absolute()}", self.busy_timeout_s)
            written = file.open()
            try:
                target = written.execution_options(write=True, durable=True)
                with (
                    self._opened() as engine,
                    engine.begin() as source,
                    file.errors(),
                    target.begin() as into,
                ):
                    copy(source, into, file.place)
            finally:
                written.dispose()

    # Connections.

    def _connect(self) -> PostgresqlConnection:
        """A new connection. StoreUnavailable where there is none, or just was none."""
        with self._lock:
            refused = self._refused
            if refused is not None and time.monotonic() < self._not_before:
                raise type(refused)(refused.place, refused.cause, refused.mend)
        try:
            connection = connect(self._said, self.busy_timeout_s)
        except psycopg.Error as error:
            refused = translated(self.place, error, self.busy_timeout_s)
            with self._lock:
                self._refused = refused
                self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                self._not_before = time.monotonic() + self._pause_s
            raise refused from None
        with self._lock:
            self._refused, self._pause_s = None, 0.0
        return connection

    def _new_engine(self) -> Engine:
        engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=QueuePool,
            pool_size=_CONNECTIONS // 2,
            max_overflow=_CONNECTIONS - _CONNECTIONS // 2,
            pool_timeout=max(self.busy_timeout_s, 0.01),
            use_native_hstore=False,
        )
        event.listen(engine, "checkout", _checkout)
        event.listen(engine, "begin", self._begin)
        return engine

    @contextmanager
    def _opened(self) -> Iterator[Engine]:
        """The engine, opened for this once where it is not."""
        if self._engine is not None:
            yield self._engine
            return
        engine = self._prepared(make=False)
        try:
            yield engine
        finally:
            engine.dispose()

    def _begin(self, connection: Connection) -> None:
        raw = _raw(connection)
        options = connection.get_execution_options()
        if options.get("making"):
            statement = _MAKE
        elif options.get("write"):
            quick = "" if options.get("durable") else f"{_QUICK}; "
            statement = f"{_WRITE}; {quick}{_LOCK}"
        else:
            statement = _READ
        try:
            raw.execute(statement, prepare=False)
        except psycopg.errors.ReadOnlySqlTransaction as error:
            refusal = self._read_only(raw, error)
            # What makes it read-only counts for the life of a connection: others may write.
            connection.invalidate(error)
            connection.engine.dispose()
            raise refusal from error
        except psycopg.Error as error:
            if raw.closed or raw.broken:
                connection.invalidate(error)
            raise

    def _read_only(self, raw: PostgresqlConnection, error: psycopg.Error) -> StoreError:
        if raw.pgconn.parameter_status(b"in_hot_standby") != b"on":
            return translated(self.place, error, self.busy_timeout_s)
        return StoreReadOnly(
            self.place,
            "the server is a hot standby, which can only be read",
            "let store.url name the primary; of several hosts "
            "(postgresql://user@one,two/database?target_session_attrs=read-write) it is found",
        )

    # The schema.

    def _prepared(self, make: bool) -> Engine:
        engine = self._new_engine()
        try:
            with self.errors():
                self._prepare(engine, make)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _prepare(self, engine: Engine, make: bool) -> None:
        with engine.begin() as connection:
            ready = self._is_ready(connection)
        if ready:
            return
        if not make:
            raise older(self.place)
        with engine.execution_options(making=True).begin() as connection:
            if not self._is_ready(connection):  # nobody else made it meanwhile
                migrate(connection)

    def _is_ready(self, connection: Connection) -> bool:
        ours, tables, where = connection.execute(_PRESENT).one()
        if ours:
            return not outdated(connection, self.place, RESTORE)
        if where is None:
            raise StoreUnavailable(
                self.place,
                "there is no schema to keep tables in",
                "make one (CREATE SCHEMA public), or correct search_path of Pleach's user",
            )
        if tables:
            raise StoreCorrupt(
                self.place,
                f"its schema {where} has {tables} tables of something else, and none of Pleach",
                "name a database that is empty or Pleach's own in store.url",
            )
        return False

    # A commit whose connection broke.

    def _settle(self, engine: Engine, mark: int, cause: str) -> None:
        """Return where the transaction that left `mark` was committed."""
        deadline = time.monotonic() + SETTLE_S
        query = _MARKED.where(schema.counter.c.name == self._writer)
        while True:
            try:
                # Whoever has the lock of writers knows that the server has ended the other.
                with self.errors(), engine.begin() as connection:
                    found = connection.scalar(query)
                break
            except StoreError as again:
                if time.monotonic() >= deadline:
                    raise OutcomeUnknown(
                        self.place,
                        f"the connection broke during a commit ({cause}), and whether it was "
                        f"kept cannot be seen ({again.cause})",
                        "look whether it is there, or send the same again: an event that was "
                        "taken is answered by its receipt",
                    ) from again
            time.sleep(_FIRST_PAUSE_S)
        if found != mark:
            raise StoreUnavailable(
                self.place,
                f"the connection broke before the commit was done ({cause}): nothing was kept",
                "try again",
            )
        log.info("the connection broke during a commit, which was kept", extra={"cause": cause})


def _raw(connection: Connection) -> PostgresqlConnection:
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, PostgresqlConnection)
    return raw


def _checkout(raw: object, *_: object) -> None:
    """Let no one have a connection that was lost while it lay idle."""
    assert isinstance(raw, PostgresqlConnection)
    if not alive(raw):
        raise InvalidatePoolError("the server has closed the connection")
