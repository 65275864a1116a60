"""How do hours become files, and files become coarser and fewer?

An hour that is over and at rest is written to a file sorted by subject and time; the hours of
a quarter of a day are joined into one file, so that a day is read from a few. What comes later
makes files beside these, which are joined with them where there are too many. Once no sample
of a day can come any more, means, maxima and counts over 5 minutes and over an hour are made
of it. A file counts once the database says so; one that is replaced stays for a while, for
those who are reading it.
"""

# ruff: noqa: S608 - what is put into SQL are names of our own tables, files and metrics

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import duckdb

from controller.history.errors import HistoryCorrupt
from controller.history.parquet import COUNT, MOST, Footers
from controller.history.plan import (
    DAY_MS,
    FIVE_MINUTES_MS,
    HOUR_MS,
    SPAN_MS,
    Keep,
    Kind,
    Part,
    expired,
    to_join,
)
from controller.history.wal import of_os, sync_directory
from controller.model.metrics import Scope, metrics_of

log = logging.getLogger(__name__)

#: Row groups of a file, within the bounds of their rows: few rows are quick to decode, many
#: groups make a long footer.
_GROUPS, _LEAST_ROWS, _MOST_ROWS = 256, 2_048, 16_384
#: Seconds for which a replaced file is kept for those who are reading it.
_CONDEMNED_S = 60.0
#: Span of files whose footers are read before somebody asks, in milliseconds.
_WARM_MS = 26 * HOUR_MS

_NAME = re.compile(r"(vm|host|port)-(\d{8}T\d{2})-(\d+)h-(\d{20})\.parquet")


@dataclass(frozen=True, slots=True)
class Packing:
    """When what is done: milliseconds of rest after which an hour is packed, the age beyond
    which no sample is taken, and how long what is kept."""

    settle_ms: int
    late_ms: int
    keep: Keep


class Packer:
    """Does one piece of work after the other. Used by one thread."""

    def __init__(self, directory: Path, packing: Packing, footers: Footers) -> None:
        self._directory = directory
        self._packing = packing
        self._footers = footers
        self._touched: set[tuple[Scope, int]] = set()
        self._quiet_since: dict[tuple[Scope, int], int] = {}
        self._condemned: list[tuple[Path, float]] = []
        self._cold: list[Path] | None = None

    def touched(self, scope: Scope, hour: int) -> None:
        """Something was written to this hour."""
        self._touched.add((scope, hour))

    def clean(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Remove files that do not count: those of a packing that was interrupted."""
        known = {part.file for part in _all(cursor)}
        for kind in Kind:
            place = self._directory / kind.value
            place.mkdir(exist_ok=True)
            for file in place.iterdir():
                name = f"{kind.value}/{file.name}"
                ours = _NAME.fullmatch(file.name) or file.name.endswith(".tmp")
                if ours and name not in known:
                    log.warning("file of an interrupted packing removed", extra={"file": str(file)})
                    file.unlink()
        for missing in sorted(known):
            if not (self._directory / missing).exists():
                log.error("file is missing", extra={"file": str(self._directory / missing)})

    def work(self, cursor: duckdb.DuckDBPyConnection, position: int, now: float) -> bool:
        """Do one thing; whether there was one. `position` is that of the last sample."""
        now_ms = round(now * 1000)
        self._unlink(now)
        parts = _all(cursor)
        hot = _hot(cursor)
        due = self._due(hot, now_ms)
        if due is not None:
            self._pack(cursor, *due, position, parts)
            return True
        together = to_join(parts, hot, now_ms - self._packing.settle_ms)
        if together:
            self._join(cursor, together, position)
            return True
        day = self._day(parts, hot, now_ms)
        if day is not None:
            self._down_sample(cursor, *day, position, parts)
            return True
        gone = expired(parts, self._packing.keep, now_ms)
        if gone:
            self._forget(cursor, gone, now)
            return True
        return self._warm(parts, now_ms)

    def _due(self, hot: Sequence[tuple[Scope, int]], now_ms: int) -> tuple[Scope, int] | None:
        """The oldest hour that is over and at rest."""
        for key in self._touched:
            self._quiet_since[key] = now_ms
        self._touched.clear()
        settle = self._packing.settle_ms
        for key in hot:
            since = self._quiet_since.setdefault(key, now_ms)
            if key[1] + HOUR_MS + settle <= now_ms and since + settle <= now_ms:
                return key
        return None

    def _pack(
        self,
        cursor: duckdb.DuckDBPyConnection,
        scope: Scope,
        hour: int,
        position: int,
        parts: Sequence[Part],
    ) -> None:
        table = f"hot_{scope.value}_{hour // HOUR_MS}"
        names = [metric.name for metric in metrics_of(scope)]
        counts = ", ".join(f'count("{name}")' for name in names)
        found = cursor.execute(f"SELECT {counts} FROM {table}").fetchall()[0]
        filled = [f'"{name}"' for name, count in zip(names, found, strict=True) if count]
        query = (
            f"SELECT s.name AS subject, h.time, {', '.join(filled) or 'NULL::DOUBLE AS none'} "
            f"FROM {table} h JOIN subject s ON s.id = h.id AND s.scope = '{scope.value}'"
        )
        end = hour + HOUR_MS
        old = [
            p for p in parts if (p.kind, p.scope, p.start, p.end) == (Kind.RAW, scope, hour, end)
        ]
        for part in old:
            query += f" UNION ALL BY NAME SELECT * FROM {self._read(part)}"
        rows = sum(part.rows for part in old) + _count(cursor, table)
        part = self._write(cursor, query, Kind.RAW, scope, hour, end, position, rows)
        with _committed(cursor):
            self._replace(cursor, old, part)
            cursor.execute(f"DROP TABLE {table}")
            cursor.execute("DELETE FROM hot WHERE scope = ? AND hour = ?", [scope.value, hour])
        self._quiet_since.pop((scope, hour), None)
        self._made(part)

    def _join(
        self, cursor: duckdb.DuckDBPyConnection, together: Sequence[Part], position: int
    ) -> None:
        start = together[0].start // SPAN_MS * SPAN_MS
        part = self._write(
            cursor,
            f"SELECT * FROM {self._read(*together)}",
            Kind.RAW,
            together[0].scope,
            start,
            start + SPAN_MS,
            position,
            sum(part.rows for part in together),
        )
        with _committed(cursor):
            self._replace(cursor, together, part)
        self._made(part)

    def _day(
        self, parts: Sequence[Part], hot: Sequence[tuple[Scope, int]], now_ms: int
    ) -> tuple[Scope, int] | None:
        """The oldest day to which no sample can be added and that has no means yet."""
        done = {(p.scope, p.start) for p in parts if p.kind is Kind.FIVE}
        open_ = {(scope, hour // DAY_MS * DAY_MS) for scope, hour in hot}
        for part in parts:
            day = part.start // DAY_MS * DAY_MS
            key = (part.scope, day)
            final = day + DAY_MS + self._packing.late_ms + HOUR_MS <= now_ms
            if part.kind is Kind.RAW and final and key not in done and key not in open_:
                return key
        return None

    def _down_sample(
        self,
        cursor: duckdb.DuckDBPyConnection,
        scope: Scope,
        day: int,
        position: int,
        parts: Sequence[Part],
    ) -> None:
        raw = [
            p
            for p in parts
            if p.kind is Kind.RAW and p.scope is scope and p.start // DAY_MS * DAY_MS == day
        ]
        names = [m.name for m in metrics_of(scope) if m.name in self._columns(raw)]
        columns = "".join(f', "{n}" DOUBLE, "{n}{MOST}" DOUBLE, "{n}{COUNT}" DOUBLE' for n in names)
        cursor.execute(
            f"CREATE OR REPLACE TEMP TABLE means (subject VARCHAR, time BIGINT{columns})"
        )
        for _, span in groupby(raw, lambda part: part.start // SPAN_MS):
            pieces = list(span)
            there = self._columns(pieces)
            wanted = "".join(
                f', avg("{n}") AS "{n}", max("{n}") AS "{n}{MOST}", count("{n}") AS "{n}{COUNT}"'
                for n in names
                if n in there
            )
            cursor.execute(
                f"INSERT INTO means BY NAME SELECT subject, {_step(FIVE_MINUTES_MS)} AS time"
                f"{wanted} FROM {self._read(*pieces)} GROUP BY 1, 2"
            )
        hourly = "".join(
            f', sum("{n}" * "{n}{COUNT}") / nullif(sum("{n}{COUNT}"), 0) AS "{n}", '
            f'max("{n}{MOST}") AS "{n}{MOST}", sum("{n}{COUNT}") AS "{n}{COUNT}"'
            for n in names
        )
        made = [
            self._write(cursor, query, kind, scope, day, day + DAY_MS, position, rows)
            for kind, query, rows in (
                (Kind.FIVE, "SELECT * FROM means", _count(cursor, "means")),
                (
                    Kind.HOUR,
                    f"SELECT subject, {_step(HOUR_MS)} AS time{hourly} FROM means GROUP BY 1, 2",
                    _count(cursor, "means") // 12,
                ),
            )
        ]
        cursor.execute("DROP TABLE means")
        with _committed(cursor):
            for part in made:
                self._replace(cursor, (), part)
        for part in made:
            self._made(part)

    def _write(
        self,
        cursor: duckdb.DuckDBPyConnection,
        query: str,
        kind: Kind,
        scope: Scope,
        start: int,
        end: int,
        position: int,
        rows: int,
    ) -> Part:
        """The file of what `query` finds, about `rows` rows; it does not count yet."""
        stamp = datetime.fromtimestamp(start / 1000, UTC).strftime("%Y%m%dT%H")
        hours = (end - start) // HOUR_MS
        name = f"{kind.value}/{scope.value}-{stamp}-{hours}h-{position:020d}.parquet"
        file = self._directory / name
        beside = file.with_suffix(".tmp")
        size = min(max(rows // _GROUPS, _LEAST_ROWS), _MOST_ROWS)
        try:
            found = cursor.execute(
                f"COPY ({query} ORDER BY subject, time) TO {_quoted(beside)} "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {size})"
            ).fetchall()
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            beside.rename(file)
            sync_directory(file.parent)
            return Part(name, kind, scope, start, end, int(found[0][0]), file.stat().st_size)
        except OSError as error:
            raise of_os(error, str(file)) from error

    def _replace(self, cursor: duckdb.DuckDBPyConnection, old: Sequence[Part], new: Part) -> None:
        for part in old:
            cursor.execute("DELETE FROM part WHERE file = ?", [part.file])
        cursor.execute(
            "INSERT INTO part VALUES (?, ?, ?, ?, ?, ?, ?)",
            [new.file, new.kind.value, new.scope.value, new.start, new.end, new.rows, new.bytes],
        )
        self._condemned += [
            (self._directory / part.file, -1.0) for part in old if part.file != new.file
        ]

    def _made(self, part: Part) -> None:
        file = f"{self._directory}/{part.file}"
        self._footers.forget(file)
        self._footers.footer(file)
        log.info("file written", extra={"file": part.file, "rows": part.rows, "bytes": part.bytes})

    def _forget(self, cursor: duckdb.DuckDBPyConnection, gone: Sequence[Part], now: float) -> None:
        with _committed(cursor):
            for part in gone:
                cursor.execute("DELETE FROM part WHERE file = ?", [part.file])
        for part in gone:
            log.info("forgotten", extra={"file": part.file, "bytes": part.bytes})
        self._condemned += [(self._directory / part.file, now) for part in gone]

    def _unlink(self, now: float) -> None:
        waiting = []
        for file, since in self._condemned:
            if since >= 0 and now - since >= _CONDEMNED_S:
                self._footers.forget(str(file))
                file.unlink(missing_ok=True)
            else:
                waiting.append((file, since if since >= 0 else now))
        self._condemned = waiting

    def _warm(self, parts: Sequence[Part], now_ms: int) -> bool:
        """Read the footer of one file that is likely to be asked for."""
        if self._cold is None:
            self._cold = [
                self._directory / part.file
                for part in parts
                if part.kind is Kind.RAW and part.end > now_ms - _WARM_MS
            ]
        if not self._cold:
            return False
        file = self._cold.pop()
        if file.exists():
            self._footers.footer(str(file))
        return True

    def _columns(self, parts: Sequence[Part]) -> set[str]:
        return {
            name
            for part in parts
            for name in self._footers.footer(f"{self._directory}/{part.file}").columns
        }

    def _read(self, *parts: Part) -> str:
        files = ", ".join(_quoted(self._directory / part.file) for part in parts)
        return f"read_parquet([{files}], union_by_name = true)"


def adopt(database: duckdb.DuckDBPyConnection, directory: Path) -> None:
    """A new database takes over the files that are there already, the newest of each."""
    database.execute("INSERT INTO meta VALUES ('made', 1)")
    newest: dict[tuple[Kind, str, str, str], Path] = {}
    for kind in Kind:
        for file in sorted((directory / kind.value).glob("*.parquet")):
            match = _NAME.fullmatch(file.name)
            if match is not None:
                newest[kind, match[1], match[2], match[3]] = file
    for (kind, scope, stamp, hours), file in newest.items():
        try:
            rows = sum(Footers().footer(str(file)).rows)
        except HistoryCorrupt as error:
            log.error("file left out", extra={"file": str(file), "cause": error.cause})
            file.rename(file.with_suffix(".damaged"))
            continue
        begin = datetime.strptime(stamp, "%Y%m%dT%H").replace(tzinfo=UTC)
        start = round(begin.timestamp() * 1000)
        end = start + int(hours) * HOUR_MS
        name = f"{kind.value}/{file.name}"
        database.execute(
            "INSERT INTO part VALUES (?, ?, ?, ?, ?, ?, ?)",
            [name, kind.value, scope, start, end, rows, file.stat().st_size],
        )
    if newest:
        log.warning("files taken over by a new database", extra={"files": len(newest)})


@contextmanager
def _committed(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    cursor.execute("BEGIN TRANSACTION")
    try:
        yield
        cursor.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # after a fatal error there is nothing to take back
            cursor.execute("ROLLBACK")
        raise


def _all(cursor: duckdb.DuckDBPyConnection) -> list[Part]:
    found = cursor.execute(
        "SELECT file, kind, scope, start, stop, rows, bytes FROM part ORDER BY start"
    ).fetchall()
    return [Part(file, Kind(kind), Scope(scope), *rest) for file, kind, scope, *rest in found]


def _hot(cursor: duckdb.DuckDBPyConnection) -> list[tuple[Scope, int]]:
    found = cursor.execute("SELECT scope, hour FROM hot ORDER BY hour").fetchall()
    return [(Scope(scope), hour) for scope, hour in found]


def _count(cursor: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(cursor.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _step(width: int) -> str:
    return f"time // {width} * {width}"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
