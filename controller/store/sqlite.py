"""SQLite under the store: all that is particular to this engine lies here.

WAL mode, so that readers and the one writer do not wait for each other. A durable commit is
synced (`synchronous=FULL`); another survives the process but not the power.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from controller.settings import SettingsError, masked, safe_directory
from controller.store.bells import Ringer
from controller.store.errors import (
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from controller.store.upgrade import migrate, older, outdated

RESTORE = "stop Pleach and restore a backup (the damaged file is left as it was found)"
UNFORESEEN = "report it with the log: nothing of this change was kept"
MAKE_ROOM = "make room on the disk, or raise the quota; the store then works again by itself"

#: Pages of 4 KiB in the log at which a commit must take it over into the database itself, which
#: costs it tenths of a second; `checkpoint` is to come before that.
WAL_PAGES = 16_000
#: How long a writer waits before it asks for the lock again: SQLite's own steps grow to
#: 100 ms and would keep eventlet's other greenthreads waiting as well.
_FIRST_PAUSE_S = 0.000_5
_LONGEST_PAUSE_S = 0.005


class Sqlite:
    """One SQLite database file."""

    def __init__(self, url: str, busy_timeout_s: float) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise _unusable(url, "this is no URL") from error
        if not parsed.database or parsed.database == ":memory:" or parsed.query:
            raise _unusable(url, "the store is shared by processes and needs a file")
        self.file = Path(parsed.database).absolute()
        self.busy_timeout_s = busy_timeout_s

    @property
    def place(self) -> str:
        """The file."""
        return str(self.file)

    def bells(self) -> Ringer:
        """Where consumers listen for commits: beside the file."""
        with self.system_errors():
            return Ringer(self.file.with_name(self.file.name + ".bells"))

    def open(self, *, make: bool = True) -> Engine:
        """An engine on the checked database; with `make`, made where there is none.

        Raises StoreCorrupt, SchemaTooNew, StoreFull, StoreReadOnly, StoreBusy or
        StoreUnavailable; a damaged file is not written to."""
        with self.errors(), self.system_errors():
            if not self.file.parent.exists():
                safe_directory(self.file.parent)
            orphan = _size(self.file.with_name(self.file.name + "-wal"))
            if not self.file.exists():
                if orphan:
                    raise StoreCorrupt(
                        str(self.file), "the file is gone but its -wal is there", RESTORE
                    )
                if not make:
                    raise StoreUnavailable(
                        str(self.file), "there is no such file", "correct the URL of the store"
                    )
                self._create()
            self.check()
            engine = self._engine(self.file)
            try:
                self._upgrade(engine, make)
            except BaseException:
                engine.dispose()
                raise
            return engine

    @contextmanager
    def writing(self, engine: Engine) -> Iterator[Connection]:
        """A transaction with the execution options of `engine`."""
        with engine.begin() as connection:
            yield connection

    def announce(self, connection: Connection) -> None:
        """Nothing in the database tells of a commit: bells are rung after it."""

    def checkpoint(self) -> None:
        """Take what the log holds over into the database, beside those who go on working."""
        with self.errors(), closing(self._connect(self.file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def check(self) -> None:
        """Raise StoreCorrupt where the file is damaged (`PRAGMA quick_check`)."""
        if _size(self.file) == 0:
            raise StoreCorrupt(str(self.file), "the file is empty", RESTORE)
        with self.errors(), closing(self._connect(self.file)) as connection:
            self._check(connection)

    def _check(self, connection: sqlite3.Connection) -> None:
        found = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise StoreCorrupt(str(self.file), "; ".join(found), RESTORE)

    def backup(self, path: Path) -> None:
        """Write a consistent copy to `path` while others go on working. StoreError where
        `path` exists already or cannot be written, StoreCorrupt where the copy is damaged."""
        with self.errors(path), staged(path) as partial:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with (
                closing(self._connect(self.file)) as source,
                closing(sqlite3.connect(partial, isolation_level=None)) as target,
            ):
                source.backup(target)
                self._check(target)

    @contextmanager
    def errors(self, place: Path | None = None) -> Iterator[None]:
        """Turn what SQLite raises into StoreError."""
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise self._translated(error.orig, place) from error
            raise
        except sqlite3.Error as error:
            raise self._translated(error, place) from error

    @contextmanager
    def system_errors(self) -> Iterator[None]:
        """Turn what the system says about files and directories into StoreError."""
        with system_errors(self.file):
            yield

    def _create(self) -> None:
        # Made under another name and linked into place when complete, so that two processes
        # never meet half a database, and an empty file is known to be damage.
        new = self.file.with_name(f".{self.file.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with closing(self._connect(new)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            engine = self._engine(new)
            try:
                with engine.execution_options(write=True, durable=True).begin() as connected:
                    migrate(connected)
            finally:
                engine.dispose()
            _sync(new)
            try:
                os.link(new, self.file)
            except FileExistsError:
                return  # another process was first, with the same
            _sync(self.file.parent)
        finally:
            for suffix in ("", "-wal", "-shm"):
                new.with_name(new.name + suffix).unlink(missing_ok=True)

    def _upgrade(self, engine: Engine, make: bool) -> None:
        with engine.execution_options(write=True, durable=True).begin() as connection:
            query = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
            if connection.exec_driver_sql(query).first() is None:
                raise StoreCorrupt(
                    str(self.file), "this is no database of Pleach", "correct store.url"
                )
            if outdated(connection, str(self.file), RESTORE):
                if not make:
                    raise older(str(self.file))
                migrate(connection)

    def _connect(self, file: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(file))}?mode=rw",
            uri=True,
            timeout=self.busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
        return connection

    def _engine(self, file: Path) -> Engine:
        # Connections wander between threads, one user at a time; there are as many as
        # threads that work at the same instant.
        engine = create_engine(
            "sqlite://",
            creator=lambda: self._connect(file),
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=-1,
        )
        event.listen(engine, "begin", self._begin)
        return engine

    def _begin(self, connection: Connection) -> None:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        options = connection.get_execution_options()
        if not options.get("write"):
            raw.execute("BEGIN")
            return
        raw.execute(f"PRAGMA synchronous={'FULL' if options.get('durable') else 'NORMAL'}")
        raw.execute("PRAGMA busy_timeout=0")
        deadline = time.monotonic() + self.busy_timeout_s
        pause = _FIRST_PAUSE_S
        while True:
            try:
                raw.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        raw.execute(f"PRAGMA busy_timeout={int(self.busy_timeout_s * 1000)}")

    def _translated(self, error: sqlite3.Error, place: Path | None) -> StoreError:
        where, cause, code = str(place or self.file), str(error), _code(error)
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(where, cause, MAKE_ROOM)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreCorrupt(where, cause, RESTORE)
        readonly = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
        if code in readonly or (code == sqlite3.SQLITE_CANTOPEN and self._forbidden()):
            return StoreReadOnly(where, cause, "give Pleach's user the right to write there")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return busy(where, self.busy_timeout_s)
        if code == sqlite3.SQLITE_IOERR and self._no_room():
            # SQLite tells a used-up quota, and no room for its -shm file, as an I/O error.
            return StoreFull(where, cause, MAKE_ROOM)
        if code == sqlite3.SQLITE_CONSTRAINT:
            return StoreError(where, cause, UNFORESEEN)
        return StoreUnavailable(where, cause, "see that the file and its disk are in order")

    def _forbidden(self) -> bool:
        # Without the right to make its -shm file, SQLite says that it cannot open the database.
        return not (os.access(self.file, os.W_OK) and os.access(self.file.parent, os.W_OK))

    def _no_room(self) -> bool:
        # Asks the system in the only way that counts quotas too: by writing a page.
        probe = self.file.with_name(f".{self.file.name}.{secrets.token_hex(4)}")
        try:
            with probe.open("xb") as file:
                file.write(bytes(65_536))
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        finally:
            probe.unlink(missing_ok=True)
        return False


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A file beside `path` to be made, which then is on the disk as `path`; gone where making it
    failed. StoreError where there is a `path` already, or the system refuses."""
    if path.exists():
        raise StoreError(str(path), "there is such a file already", "choose another name")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with system_errors(path):
        path.parent.stat()
        try:
            yield partial
            _sync(partial)
            os.link(partial, path)
            _sync(path.parent)
        finally:
            for suffix in ("", "-wal", "-shm"):
                partial.with_name(partial.name + suffix).unlink(missing_ok=True)


@contextmanager
def system_errors(place: Path) -> Iterator[None]:
    """Turn what the system says about files and directories into StoreError."""
    try:
        yield
    except OSError as error:
        raise _from_system(error, place) from error
    except SettingsError as error:
        problem = error.problems[0]
        raise StoreUnavailable(problem.place, problem.cause, problem.hint) from error


def busy(place: str, waited_s: float) -> StoreBusy:
    """The error of a writer that waited in vain for `waited_s` seconds."""
    return StoreBusy(
        place,
        f"another writer kept it locked for more than {waited_s:g} s",
        "try again; if it stays so, see which process holds the file",
    )


def _unusable(url: str, cause: str) -> StoreUnavailable:
    return StoreUnavailable(f"store.url {masked(url)}", cause, "write sqlite:////the/full/path.db")


def _from_system(error: OSError, place: Path) -> StoreError:
    where, cause = str(error.filename or place), os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(where, cause, MAKE_ROOM)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreReadOnly(where, cause, "give Pleach's user the right to write there")
    return StoreUnavailable(where, cause, "see that the file and its disk are in order")


def _code(error: sqlite3.Error) -> int:
    # Raised by Python's module itself, an error has no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
