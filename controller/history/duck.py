"""The default engine: what came of late in DuckDB, hours that are over in Parquet.

Each hour has a table, row by row as samples came; once it is over and nothing came for a
while it is written as a Parquet file sorted by subject and time (`packing`). Which files count
is written in the database, in the same transaction as the samples and the position in the log,
so that whatever ends the process, every sample is told exactly once.
"""

# ruff: noqa: S608 - what is put into SQL are names of our own tables, files and metrics

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from controller.history.engine import EngineStatus
from controller.history.errors import HistoryCorrupt, HistoryError, HistoryFull, HistoryUnavailable
from controller.history.packing import Packer, Packing, adopt
from controller.history.parquet import Footers, check
from controller.history.plan import HOUR_MS, Kind, Part, sources
from controller.history.samples import Rows
from controller.history.series import Points, Query
from controller.model.metrics import Scope, metrics_of

log = logging.getLogger(__name__)

#: Rows that are read of a table at once.
_LUMP = 500_000
#: Attempts of a reader whose file was replaced while it was about to open it.
_ATTEMPTS = 5

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name VARCHAR PRIMARY KEY, value BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS subject (scope VARCHAR, id INTEGER, name VARCHAR);
CREATE TABLE IF NOT EXISTS hot (scope VARCHAR, hour BIGINT);
CREATE TABLE IF NOT EXISTS part (
    file VARCHAR, kind VARCHAR, scope VARCHAR, start BIGINT, stop BIGINT,
    rows BIGINT, bytes BIGINT
);
"""


class DuckEngine:
    """Time series in `directory`, which no other process may write to. Raises HistoryError."""

    def __init__(
        self, directory: Path, packing: Packing, *, memory_bytes: int, threads: int
    ) -> None:
        self._directory = directory
        self._file = directory / "history.duckdb"
        self._packing = packing
        self._config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_bytes}B",
            "threads": threads,
            "temp_directory": str(directory / "tmp"),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        self._footers = Footers()
        self._ids: dict[Scope, dict[str, int]] = {}
        self._position = 0
        self._lock = threading.Lock()
        self._database: duckdb.DuckDBPyConnection | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._connect()
        self._packer = Packer(directory, packing, self._footers)
        with self._cursor() as cursor:
            self._packer.clean(cursor)

    @property
    def position(self) -> int:
        """Position in the log up to which everything is kept."""
        return self._position

    def write(self, rows: Sequence[Rows], position: int) -> None:
        """Keep `rows` in one transaction."""
        new: dict[Scope, dict[str, int]] = {}
        try:
            self._write(rows, position, new)
        except BaseException:
            for scope, names in new.items():
                for name in names:
                    self._ids[scope].pop(name, None)
            raise
        self._position = position

    def _write(self, rows: Sequence[Rows], position: int, new: dict[Scope, dict[str, int]]) -> None:
        with self._transaction() as cursor:
            for (scope, metrics), group in _grouped(rows):
                ids, codes = self._coded(scope, group, new.setdefault(scope, {}))
                times = np.concatenate([piece.times for piece in group])
                values = np.concatenate([piece.values for piece in group])
                hours = times // HOUR_MS * HOUR_MS
                for hour in np.unique(hours).tolist():
                    here = np.flatnonzero(hours == hour)
                    table = _table(ids[codes[here]], times[here], metrics, values[here])
                    self._insert(cursor, scope, hour, metrics, table)
                    self._packer.touched(scope, hour)
            for scope, names in new.items():
                _add_subjects(cursor, scope, names)
            cursor.execute("INSERT OR REPLACE INTO meta VALUES ('position', ?)", [position])

    def scan(self, query: Query) -> tuple[int, Iterator[Points]]:
        """The samples of `query` as of one moment."""
        pieces = self._scan(query)
        position = next(pieces)
        assert isinstance(position, int)
        return position, pieces  # type: ignore[return-value]

    def _scan(self, query: Query) -> Iterator[Points | int]:
        for left in reversed(range(_ATTEMPTS)):
            told = False
            try:
                with self._transaction(read=True) as cursor:
                    position = _position(cursor)
                    parts = _parts(cursor, query.scope)
                    hot = _hot(cursor, query.scope)
                    chosen = sources(query, parts, hot)
                    for part in chosen.parts:
                        self._footers.footer(f"{self._directory}/{part.file}")
                    told = True
                    yield position
                    for part in chosen.parts:
                        file = f"{self._directory}/{part.file}"
                        yield from self._footers.scan(file, query, sampled=part.kind is Kind.RAW)
                    for hour in chosen.hot:
                        yield from self._read_hot(cursor, query, hour)
                    return
            except FileNotFoundError as error:
                if told or left == 0:
                    raise HistoryCorrupt(
                        "the file is missing", "restore it from a copy", str(error.filename)
                    ) from error

    def keep_house(self, now: float) -> bool:
        """Pack, down-sample or forget one thing."""
        with self._cursor() as cursor:
            return self._packer.work(cursor, self._position, now)

    def check(self) -> list[str]:
        """Read every file and every table; what is wrong."""
        wrong = []
        with self._transaction(read=True) as cursor:
            for scope in Scope:
                for part in _parts(cursor, scope):
                    try:
                        rows = check(f"{self._directory}/{part.file}")
                    except (HistoryCorrupt, FileNotFoundError) as error:
                        wrong.append(str(error))
                        continue
                    if rows != part.rows:
                        wrong.append(f"{part.file}: {rows} rows and not {part.rows}")
                for hour in _hot(cursor, scope):
                    cursor.execute(
                        f"SELECT count(COLUMNS(*)) FROM {hot_table(scope, hour)}"
                    ).fetchall()
        return wrong

    def status(self) -> EngineStatus:
        """What is held."""
        with self._transaction(read=True) as cursor:
            found = cursor.execute(
                "SELECT min(start), max(stop), sum(bytes), sum(hot) FROM "
                "(SELECT start, stop, bytes, 0 AS hot FROM part "
                "UNION ALL SELECT hour, hour + ?, 0, 1 FROM hot)",
                [HOUR_MS],
            ).fetchall()
        oldest, newest, size, hot = found[0]
        return EngineStatus(
            "duckdb",
            str(self._directory),
            int(size or 0) + sum(f.stat().st_size for f in self._directory.glob("history.duckdb*")),
            None if oldest is None else oldest / 1000,
            None if newest is None else newest / 1000,
            int(hot or 0),
        )

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    # Connections

    def _connect(self) -> None:
        with self._translated():
            database = duckdb.connect(str(self._file), config=self._config)
            try:
                database.execute(_SCHEMA)
                if not database.execute("SELECT 1 FROM meta WHERE name = 'made'").fetchall():
                    adopt(database, self._directory)
                _widen(database)
                self._position = _position(database)
                self._ids = {scope: {} for scope in Scope}
                for scope, id_, name in database.execute(
                    "SELECT scope, id, name FROM subject ORDER BY id"
                ).fetchall():
                    self._ids[Scope(scope)][name] = id_
            except BaseException:
                database.close()
                raise
        self._database = database

    def _need(self) -> duckdb.DuckDBPyConnection:
        """The connection, made anew where a fatal error ended it."""
        with self._lock:
            if self._database is None:
                self._connect()
            assert self._database is not None
            return self._database

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._translated():
            cursor = self._need().cursor()
            try:
                yield cursor
            finally:
                cursor.close()

    @contextmanager
    def _transaction(self, *, read: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._cursor() as cursor:
            cursor.execute("BEGIN TRANSACTION READ ONLY" if read else "BEGIN TRANSACTION")
            yield cursor  # closing the cursor takes back what is not committed
            cursor.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Tell DuckDB's errors as ours."""
        try:
            yield
        except duckdb.FatalException as error:
            self.close()  # nothing more is possible with this connection
            raise _told(error, self._file) from error
        except duckdb.Error as error:
            raise _told(error, self._file) from error

    # What is done with them

    def _coded(self, scope: Scope, group: Sequence[Rows], new: dict[str, int]) -> tuple[Any, Any]:
        """Numbers of the subjects in `group` and, row by row, the index among these; subjects
        without a number get one in `new`."""
        known = self._ids[scope]
        ids: list[int] = []
        codes = []
        for piece in group:
            codes.append(piece.codes + len(ids))
            for name in piece.subjects:
                number = known.get(name)
                if number is None:  # known at once, for those who read as soon as it is there
                    number = new[name] = known[name] = len(known)
                ids.append(number)
        return np.array(ids, np.int32), np.concatenate(codes)

    def _insert(
        self,
        cursor: duckdb.DuckDBPyConnection,
        scope: Scope,
        hour: int,
        metrics: Sequence[str],
        table: Any,
    ) -> None:
        name = hot_table(scope, hour)
        found = cursor.execute(
            "SELECT 1 FROM hot WHERE scope = ? AND hour = ?", [scope.value, hour]
        ).fetchall()
        if not found:
            columns = ", ".join(f'"{metric.name}" DOUBLE' for metric in metrics_of(scope))
            cursor.execute(f"CREATE TABLE {name} (id INTEGER, time BIGINT, {columns})")
            cursor.execute("INSERT INTO hot VALUES (?, ?)", [scope.value, hour])
        cursor.register("block", table)
        wanted = ", ".join(f'"{metric}"' for metric in metrics)
        cursor.execute(f"INSERT INTO {name} (id, time, {wanted}) SELECT * FROM block")
        cursor.unregister("block")

    def _read_hot(
        self, cursor: duckdb.DuckDBPyConnection, query: Query, hour: int
    ) -> Iterator[Points]:
        known = self._ids[query.scope]
        ids = None
        if query.subjects is not None:
            ids = [known[name] for name in query.subjects if name in known]
            if not ids:
                return
        wanted = ", ".join(f'"{metric}"' for metric in query.metrics)
        where = "" if ids is None else " AND list_contains(?, id)"
        if ids is not None and len(ids) == 1:
            where = " AND id = ?"
        parameters: list[Any] = [query.start, query.end]
        if ids is not None:
            parameters.append(ids[0] if len(ids) == 1 else ids)
        name = hot_table(query.scope, hour)
        found = cursor.execute(
            f"SELECT id, time, {wanted} FROM {name} WHERE time >= ? AND time < ?{where}",
            parameters,
        ).fetchnumpy()
        times = np.asarray(found["time"])
        if not len(times):
            return
        values = np.empty((len(times), len(query.metrics)), order="F")
        for column, metric in enumerate(query.metrics):
            values[:, column] = np.ma.filled(found[metric].astype(np.float64), np.nan)
        subjects = list(known)
        codes = np.asarray(found["id"])
        for first in range(0, len(times), _LUMP):
            part = slice(first, first + _LUMP)
            yield Points(subjects, codes[part], times[part], values[part])


def hot_table(scope: Scope, hour: int) -> str:
    """Name of the table of an hour."""
    return f"hot_{scope.value}_{hour // HOUR_MS}"


def _grouped(
    rows: Sequence[Rows],
) -> Iterator[tuple[tuple[Scope, tuple[str, ...]], list[Rows]]]:
    def key(piece: Rows) -> tuple[Scope, tuple[str, ...]]:
        return piece.scope, piece.metrics

    for found, group in itertools.groupby(sorted(rows, key=key), key):
        yield found, list(group)


def _table(ids: Any, times: Any, metrics: Sequence[str], values: Any) -> Any:
    columns = {"id": pa.array(ids), "time": pa.array(times)}
    for column, metric in enumerate(metrics):
        # As null, not as NaN: that takes no room, and no aggregate counts it.
        columns[metric] = pa.array(np.ascontiguousarray(values[:, column]), from_pandas=True)
    return pa.table(columns)


def _add_subjects(cursor: duckdb.DuckDBPyConnection, scope: Scope, names: dict[str, int]) -> None:
    if names:
        table = pa.table({"id": pa.array(names.values(), pa.int32()), "name": pa.array(names)})
        cursor.register("block", table)
        cursor.execute("INSERT INTO subject SELECT ?, id, name FROM block", [scope.value])
        cursor.unregister("block")


def _widen(database: duckdb.DuckDBPyConnection) -> None:
    """Tables of an earlier version get the columns of metrics that are new."""
    there = set(database.execute("SELECT table_name, column_name FROM duckdb_columns()").fetchall())
    for scope in Scope:
        for hour in _hot(database, scope):
            table = hot_table(scope, hour)
            for metric in metrics_of(scope):
                if (table, metric.name) not in there:
                    database.execute(f'ALTER TABLE {table} ADD COLUMN "{metric.name}" DOUBLE')


def _position(cursor: duckdb.DuckDBPyConnection) -> int:
    found = cursor.execute("SELECT value FROM meta WHERE name = 'position'").fetchall()
    return int(found[0][0]) if found else 0


def _parts(cursor: duckdb.DuckDBPyConnection, scope: Scope) -> list[Part]:
    found = cursor.execute(
        "SELECT file, kind, start, stop, rows, bytes FROM part WHERE scope = ? ORDER BY start",
        [scope.value],
    ).fetchall()
    return [Part(f, Kind(kind), scope, *numbers) for f, kind, *numbers in found]


def _hot(cursor: duckdb.DuckDBPyConnection, scope: Scope) -> list[int]:
    found = cursor.execute("SELECT hour FROM hot WHERE scope = ?", [scope.value]).fetchall()
    return [hour for (hour,) in found]


def _told(error: duckdb.Error, file: Path) -> HistoryError:
    cause = str(error).partition("\n")[0]
    if "No space left" in cause or "Disk quota" in cause:
        return HistoryFull(cause, "make room on this disk, or lower history.max_bytes", str(file))
    if isinstance(error, duckdb.OutOfMemoryException):
        return HistoryUnavailable(cause, "raise history.memory_bytes", str(file))
    if "lock on file" in cause:
        return HistoryUnavailable(cause, "end the process that uses it", str(file))
    if isinstance(error, duckdb.SerializationException) or "not a valid DuckDB" in cause:
        return HistoryCorrupt(
            cause,
            "restore it from a copy, or move it away: the Parquet files beside it are taken "
            "over then, and what was not yet packed is missing",
            str(file),
        )
    return HistoryUnavailable(cause, "see the cause; the disk may be at fault", str(file))
