"""What becomes of a batch? One thread judges, writes the log, flushes it, and only then tells.

Batches that wait at the same time share one flush of the disk. Where that fails, none of them
is taken, and what was noted of them is taken back.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controller.history import record as records
from controller.history.errors import HistoryBusy, HistoryError, HistoryFull, StaleSequence
from controller.history.record import Books, Record
from controller.history.samples import Batch
from controller.history.screen import Limits, Refusal, Rights, screen
from controller.history.senders import WINDOW, Offsets
from controller.history.waiting import Waiting
from controller.history.wal import SEGMENT_BYTES, Wal
from controller.waiting import groups

log = logging.getLogger(__name__)

#: Batches that share a flush of the disk.
MAX_GROUP = 64
#: Batches that wait to be judged, beyond which more are turned away.
MAX_WAITING = 1_000
#: Seconds after which the books are saved where something was taken.
BOOKS_S = 300.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many values may wait for the engine, and how many bytes of the disk are left to
    others."""

    queue_values: int
    min_free_bytes: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a batch, once it is on the disk. `clock_offset_s` is how far the
    sender's clock is ahead, where it told its time."""

    outcome: Literal["taken", "duplicate"]
    accepted: int
    refused: tuple[Refusal, ...]
    resets: int
    clock_offset_s: float | None


@dataclass(slots=True)
class _Job:
    batch: Batch
    sender: str
    rights: Rights
    now: float
    future: Future[Receipt]
    receipt: Receipt | None = None


class Intake:
    """The thread that takes batches in."""

    def __init__(
        self,
        wal: Wal,
        books: Books,
        books_file: Path,
        saved: int,
        waiting: Waiting,
        limits: Limits,
        bounds: Bounds,
    ) -> None:
        self._wal = wal
        self._books = books
        self._books_file = books_file
        self._waiting = waiting
        self._limits = limits
        self._bounds = bounds
        self._offsets = Offsets()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unsaved = SEGMENT_BYTES if saved < books.position else 0
        self._saved_at = time.monotonic()
        self._now = 0.0
        #: Position of the books that are saved: the log before it is not needed for them.
        self.saved = saved
        #: Batches by outcome, and samples refused by reason, since the start.
        self.outcomes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="history-intake", daemon=True)
        self._thread.start()

    def submit(self, batch: Batch, sender: str, rights: Rights, now: float) -> Future[Receipt]:
        """Take `batch`. Raises HistoryBusy, also through the future, as well as BadBatch,
        StaleSequence, HistoryFull and HistoryUnavailable; nothing of it is taken then."""
        if self._jobs.qsize() >= MAX_WAITING:
            raise HistoryBusy(f"{MAX_WAITING} batches are waiting", "send it again in a moment")
        future: Future[Receipt] = Future()
        self._jobs.put(_Job(batch, sender, rights, now, future))
        return future

    def close(self) -> None:
        """Take in what was submitted, save the books, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        for group in groups(self._jobs, MAX_GROUP):
            self._do(group)
            self._now = group[-1].now
            if self._unsaved >= SEGMENT_BYTES or time.monotonic() - self._saved_at >= BOOKS_S:
                self._save()
        self._save()

    def _do(self, group: list[_Job]) -> None:
        before: list[Books] = []
        taken: list[Record] = []
        judged: list[_Job] = []
        for job in group:
            try:
                record = self._judge(job, sum(r.values for r in taken))
            except Exception as error:  # of this batch alone, told to its sender
                job.future.set_exception(error)
                continue
            judged.append(job)
            if record is not None:
                before.append(self._books.enter(record))
                taken.append(record)
        try:
            self._keep(taken)
        except Exception as error:  # nothing is kept then: told to all of them
            for books in reversed(before):
                self._books.take_back(books)
            for job in judged:
                job.future.set_exception(error)
            return
        for job in judged:
            assert job.receipt is not None
            self.outcomes[job.receipt.outcome] += 1
            for refusal in job.receipt.refused:
                self.refused[refusal.reason.value] += refusal.count
            job.future.set_result(job.receipt)

    def _judge(self, job: _Job, more: int) -> Record | None:
        """The record of what is taken, None where nothing is; the job gets its receipt.
        `more` values of the same group are to wait, too."""
        batch = job.batch
        offset = None
        if batch.sent_at is not None:
            offset = round(self._offsets.note(job.sender, batch.sent_at, job.now), 3)
        known = self._books.senders.get(job.sender)
        had = known.has(batch.sequence) if known is not None else False
        if had:
            job.receipt = Receipt("duplicate", 0, (), 0, offset)
            return None
        if had is None:
            assert known is not None
            raise StaleSequence(
                f"batch {batch.sequence} of {batch.sender} lies {WINDOW} or more behind "
                f"{known.last}, the newest",
                "give the sender another name whenever its numbering starts anew",
            )
        if self._waiting.values + more > self._bounds.queue_values:
            raise HistoryBusy(
                f"{self._waiting.values} values wait for the engine",
                "send it again later; what was acknowledged is kept",
            )
        now_ms = round(job.now * 1000)
        caller = records.caller_of(job.sender)
        found = screen(batch, job.rights, self._books.standing, caller, now_ms, self._limits)
        job.receipt = Receipt("taken", found.accepted, found.refused, found.resets, offset)
        if not found.accepted:
            return None
        return Record(job.sender, batch.sequence, now_ms, found.rows, found.counted)

    def _keep(self, taken: list[Record]) -> None:
        if not taken:
            return
        self._check_room()
        payloads = [records.pack(record) for record in taken]
        last = self._wal.append(payloads)
        self._books.position = last
        self._unsaved += sum(map(len, payloads))
        for position, record in enumerate(taken, last - len(taken) + 1):
            self._waiting.add(position, record.rows)

    def _check_room(self) -> None:
        place = self._books_file.parent
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            raise HistoryFull(str(error), "see to the disk", str(place)) from error
        if free < self._bounds.min_free_bytes:
            raise HistoryFull(
                f"{free} bytes are free, and {self._bounds.min_free_bytes} are left to others",
                "make room on this disk, or lower history.max_bytes or history.min_free_bytes",
                str(place),
            )

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        # Twice as old as what is taken, as of the last batch.
        self._books.forget(round(self._now * 1000) - 2 * self._limits.late_ms)
        self._offsets.forget(set(self._books.senders))
        if self._books.position == self.saved:
            return
        try:
            records.save(self._books, self._books_file)
        except HistoryError as error:
            log.error("the books cannot be saved", extra={"cause": str(error)})
            return
        self.saved = self._books.position
        self._unsaved = 0
