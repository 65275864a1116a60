"""How does the brain run the floors? Each loop in a task of its own, what computes in a pool.

A loop takes a turn, then rests until its next is due. A turn that fails is told, remembered as
the loop's trouble, and taken again at the next time: no loop ends another, nor the server.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from controller.history.errors import HistoryError
from controller.history.history import History
from controller.logs import configure
from controller.model.state import State
from controller.process import die_with_parent
from controller.settings import LogSettings, Settings
from controller.store import Store, StoreError, Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

#: How much a computation gives way to the REST interface and the switches, as for `nice`.
_NICE = 10


@dataclass(frozen=True, slots=True)
class Ground:
    """What loops stand on.

    `state` gives the state of record now, to be read before the next await. `write` does a piece
    of work in a transaction (it may be run twice, and changes nothing else). `history` gives the
    time series, or raises HistoryError where they cannot be used.
    """

    settings: Settings
    store: Store
    state: Callable[[], State]
    write: Callable[[Callable[[Transaction], object]], Awaitable[object]]
    history: Callable[[], Awaitable[History]]
    pool: Pool
    #: For what takes minutes, such as learning, which others must not have to wait for.
    slow: Pool = field(default_factory=lambda: Pool())


class Loop(Protocol):
    """Something that is done every `every_s` seconds."""

    name: str
    every_s: float

    async def turn(self, ground: Ground) -> None:
        """Do it once. What takes the processor for more than some milliseconds goes through
        `ground.pool`, what waits for a disk through a thread."""


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """How a loop fares: turns taken and failed, when the last one ended (Unix seconds), how long
    it took in seconds, and what is wrong, "" where nothing is."""

    name: str
    every_s: float
    turns: int = 0
    failures: int = 0
    last_at: float | None = None
    last_s: float | None = None
    trouble: str = ""


class Pool:
    """One process for computations, made when the first comes, and again where it died. It logs
    as `logs` says, to this process's stderr."""

    def __init__(self, logs: LogSettings | None = None) -> None:
        self._logs = logs or LogSettings()
        self._executor: ProcessPoolExecutor | None = None
        self._stopped = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function`, which is found by name and takes and returns what can be
        pickled. Raises what it raises; BrokenProcessPool where the process died twice, or where
        the pool was stopped meanwhile."""
        loop = asyncio.get_running_loop()
        for last in (False, True):
            if self._stopped:
                raise BrokenProcessPool("the pool was stopped")
            executor = self._executor = self._executor or _executor(self._logs)
            try:
                running = loop.run_in_executor(executor, partial(function, *args, **kwargs))
                _leave_pipes_to(executor)
                return await running
            except (BrokenProcessPool, BrokenPipeError):
                if self._executor is executor:
                    self._executor = None
                executor.shutdown(wait=False)
                if last:
                    raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End the process; what it was computing is lost, and nothing further begins."""
        self._stopped = True
        executor, self._executor = self._executor, None
        if executor is None:
            return
        # There is no public way to end a computation that is under way.
        processes = list((executor._processes or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


class Loops:
    """The loops of one brain."""

    def __init__(self, loops: Sequence[Loop], ground: Ground) -> None:
        names = [loop.name for loop in loops]
        if len(set(names)) != len(names):
            raise ValueError(f"two loops have the same name: {sorted(names)}")
        self._loops = tuple(loops)
        self._ground = ground
        self._status = {loop.name: LoopStatus(loop.name, loop.every_s) for loop in loops}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._tasks = [
            asyncio.create_task(self._run(loop), name=f"loop {loop.name}") for loop in self._loops
        ]

    async def stop(self) -> None:
        """End all of them, in the middle of a turn too."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        await asyncio.to_thread(self._ground.pool.stop)
        await asyncio.to_thread(self._ground.slow.stop)

    def status(self) -> list[LoopStatus]:
        """How each loop fares."""
        return list(self._status.values())

    async def _run(self, loop: Loop) -> None:
        while True:
            began = time.monotonic()
            trouble = ""
            try:
                await loop.turn(self._ground)
            except Exception as error:  # whatever it is: the next turn may be better
                trouble = f"{type(error).__name__}: {error}"
                if trouble != self._status[loop.name].trouble:
                    # What a server that is away means is all in its words.
                    foreseen = isinstance(error, StoreError | HistoryError)
                    log.error(
                        "a loop's turn failed; it is taken again",
                        extra={"loop": loop.name, "every_s": loop.every_s, "cause": trouble},
                        exc_info=None if foreseen else error,
                    )
            took = time.monotonic() - began
            self._note(loop, took, trouble)
            await asyncio.sleep(max(loop.every_s - took, min(1.0, loop.every_s)))

    def _note(self, loop: Loop, took_s: float, trouble: str) -> None:
        before = self._status[loop.name]
        self._status[loop.name] = replace(
            before,
            turns=before.turns + 1,
            failures=before.failures + bool(trouble),
            last_at=time.time(),
            last_s=took_s,
            trouble=trouble,
        )


def _executor(logs: LogSettings) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_become_worker,
        initargs=(os.getpid(), logs),
    )


def _leave_pipes_to(executor: ProcessPoolExecutor) -> None:
    """Close the ends of the pipes that only the process uses, which has them once work was given
    to it: else whoever talks with it never sees that it is gone, and a half message that it left
    or was being sent is waited for for ever (the latter is CPython's gh-94777)."""
    queues: Any = executor
    queues._call_queue._reader.close()
    queues._result_queue._writer.close()


def _become_worker(parent: int, logs: LogSettings) -> None:
    """In the pool's process: end with the brain, leave signals to it, give way to it, and log
    as it does."""
    die_with_parent(parent, signal.SIGKILL)
    configure(logs.level, logs.format)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
