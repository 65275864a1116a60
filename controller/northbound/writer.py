"""Who writes to the store? One thread, so that the event loop never waits for a disk.

Requests that wait at the same time are committed together: a commit costs one flush of the
disk however much it holds. Where one of them fails after it has written something, the whole
group is taken back and each is done alone, so none can disturb another.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from controller.model.state import Change
from controller.northbound.problems import UNAVAILABLE, Problem
from controller.store import Store, StoreUnavailable, Transaction
from controller.waiting import groups

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Transaction], T]

#: Requests in one commit, so that the first of them does not wait long for the last.
MAX_GROUP = 64
#: Requests waiting, beyond which more are turned away.
MAX_WAITING = 10_000


@dataclass(slots=True)
class _Job:
    work: Work[Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """The thread that writes. `committed` is called in the loop with what was changed, after
    each commit and before anybody is told of it."""

    def __init__(self, store: Store, committed: Callable[[list[Change]], None]) -> None:
        self._store = store
        self._committed = committed
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Do what is waiting, then end."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        """Do `work` in a transaction; its result comes once that is on the disk.

        `work` may be run twice, and must change nothing but the transaction. Raises Problem
        (UNAVAILABLE) where too much is waiting, and through the future what `work` and the
        store raise.
        """
        assert self._loop is not None
        if self._jobs.qsize() >= MAX_WAITING:
            raise Problem(
                UNAVAILABLE,
                f"{MAX_WAITING} changes are waiting to be written",
                "Try again in a moment, with fewer requests at once.",
                headers={"retry-after": "1"},
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, future))
        return future

    def _run(self) -> None:
        for group in groups(self._jobs, MAX_GROUP):
            self._do(group)

    def _do(self, group: list[_Job]) -> None:
        changes: list[Change] = []
        try:
            changes += self._commit(group)
        except Exception as error:
            if len(group) == 1 or isinstance(error, StoreUnavailable):
                for job in group:  # which alone would fail as well, each after its own wait
                    job.error = error
            else:
                for job in group:
                    changes += self._do_alone(job)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, group, changes)

    def _do_alone(self, job: _Job) -> list[Change]:
        try:
            return self._commit([job])
        except Exception as error:
            job.error = error
            return []

    def _commit(self, group: list[_Job]) -> list[Change]:
        with self._store.transaction() as transaction:
            for job in group:
                job.result = job.work(transaction)
        return transaction.changes

    def _deliver(self, group: list[_Job], changes: list[Change]) -> None:
        try:
            self._committed(changes)
        finally:
            for job in group:
                if job.future.done():  # whoever asked has gone
                    continue
                if job.error is not None:
                    job.future.set_exception(job.error)
                else:
                    job.future.set_result(job.result)
