"""The history: takes samples so that none is lost, hands them to the engine, and reads.

    take ─▶ judged ─▶ log, flushed ─▶ acknowledged
                         └─▶ waiting ─▶ engine, every few seconds ─▶ files

What waits for the engine lies in the log and in memory, and readers are told of both. After a
crash the log is read again from where the engine and the books of senders stand.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from controller.history import record as records
from controller.history.engine import Engine, EngineStatus
from controller.history.errors import HistoryUnavailable
from controller.history.intake import Bounds, Intake, Receipt
from controller.history.keeper import Keeper
from controller.history.record import Books
from controller.history.samples import Batch
from controller.history.screen import Limits, Rights
from controller.history.series import Points, Query, Reader, select
from controller.history.waiting import Waiting
from controller.history.wal import Wal, of_os, segments

log = logging.getLogger(__name__)

LOG_DIRECTORY = "log"
_BOOKS = "books.msgpack"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds between two writes to the engine, and between two looks at what is due."""

    flush_s: float
    house_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Status:
    """How the history is. `trouble` is why the engine takes nothing at the moment; `batches`
    (by outcome) and `refused` (samples by reason) count from the start of the process."""

    engine: EngineStatus
    waiting_values: int
    log_bytes: int
    batches: dict[str, int]
    refused: dict[str, int]
    trouble: str | None


class History(Reader):
    """The history in `directory`, kept by `engine`. Methods may be called from any thread."""

    def __init__(
        self, directory: Path, engine: Engine, limits: Limits, bounds: Bounds, times: Times
    ) -> None:
        super().__init__(self._find)
        self._engine = engine
        self._wal = Wal(directory / LOG_DIRECTORY)
        self._waiting = Waiting()
        file = directory / _BOOKS
        books = records.load(file)
        saved = books.position
        self._recover(books)
        self._intake = Intake(self._wal, books, file, saved, self._waiting, limits, bounds)
        self._keeper = Keeper(engine, self._waiting, times.flush_s, times.house_s, self._forget)

    def take(self, batch: Batch, caller: str, rights: Rights, now: float) -> Future[Receipt]:
        """Take `batch` of `caller`; senders of different callers may have the same name. The
        receipt comes once it is on the disk. `now` is Unix seconds.

        Raises HistoryBusy, also through the future, as well as BadBatch, StaleSequence,
        HistoryFull and HistoryUnavailable; nothing of the batch is taken then."""
        return self._intake.submit(batch, f"{caller}/{batch.sender}", rights, now)

    def status(self) -> Status:
        """How the history is. Raises HistoryError."""
        return Status(
            self._engine.status(),
            self._waiting.values,
            self._wal.bytes(),
            dict(self._intake.outcomes),
            dict(self._intake.refused),
            self._keeper.trouble,
        )

    def close(self) -> None:
        """End, after what was taken is handed on; the engine stays open."""
        self._intake.close()
        self._keeper.close()
        self._wal.close()

    def _find(self, query: Query) -> Iterator[Points]:
        # First what waits: what the engine is given meanwhile is told by both, and left out.
        waiting = self._waiting.all()
        position, pieces = self._engine.scan(query)
        yield from pieces
        for at, rows in waiting:
            for piece in rows:
                if at > position and piece.scope is query.scope:
                    points = Points(piece.subjects, piece.codes, piece.times, piece.values)
                    found = select(points, piece.metrics, query)
                    if found is not None:
                        yield found

    def _recover(self, books: Books) -> None:
        engine = self._engine.position
        begin = min(engine, books.position)
        there = segments(self._wal.directory)
        if not there:
            begin = max(engine, books.position)
        elif there[0][0] > begin + 1:
            log.error(
                "the log no longer has all that is missing elsewhere",
                extra={"engine": engine, "books": books.position, "log": there[0][0]},
            )
            begin = there[0][0] - 1
        again = 0
        for position, payload in self._wal.replay(begin):
            record = records.unpack(payload)
            if position > books.position:
                books.enter(record)
                books.position = position
            if position > engine:
                self._waiting.add(position, record.rows)
                again += 1
        books.position = max(books.position, self._wal.position)
        if again:
            log.info("samples taken again from the log", extra={"batches": again})

    def _forget(self) -> None:
        self._wal.forget(min(self._engine.position, self._intake.saved))


class Lock:
    """The right to write in `directory`, which one process at a time has. Raises
    HistoryUnavailable with `mend` where another has it."""

    def __init__(self, directory: Path, mend: str) -> None:
        file = directory / _LOCK
        try:
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise HistoryUnavailable("another process writes here", mend, str(file)) from None
        except OSError as error:
            raise of_os(error, str(file)) from error

    def close(self) -> None:
        """Give it up."""
        os.close(self._descriptor)
