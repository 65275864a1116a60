"""Who writes to the engine? One thread, every few seconds, and it keeps house in between.

While the engine cannot be written to, all that was taken waits in the log and in memory, and
the keeper tries again with ever longer pauses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from controller.history.engine import Engine
from controller.history.errors import HistoryError
from controller.history.waiting import Waiting

log = logging.getLogger(__name__)

#: Values in one transaction of the engine; where so many wait, they are written at once.
WRITE_VALUES = 1_000_000
#: Longest pause between two attempts, in seconds.
LONGEST_PAUSE_S = 30.0


class Keeper:
    """The thread that writes what waits to `engine` every `flush_s` seconds, and looks every
    `house_s` what else is due. `written` is called after each write."""

    def __init__(
        self,
        engine: Engine,
        waiting: Waiting,
        flush_s: float,
        house_s: float,
        written: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._waiting = waiting
        self._flush_s = flush_s
        self._house_s = house_s
        self._written = written
        self._house_at = 0.0
        self._stopping = False
        self._troubles: dict[Callable[[], None], str] = {}
        self._thread = threading.Thread(target=self._run, name="history-keeper", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Why the engine cannot be written to at the moment."""
        return next(iter(tuple(self._troubles.values())), None)

    def close(self) -> None:
        """Write what waits, as far as that is possible, and end."""
        self._stopping = True
        self._waiting.wake.set()
        self._thread.join()

    def _run(self) -> None:
        pause = 0.0
        while True:
            self._waiting.wake.wait(max(pause, 0.0 if self._more_to_do() else self._flush_s))
            self._waiting.wake.clear()
            stopping = self._stopping
            failed = not (self._try(self._flush) and (stopping or self._try(self._keep_house)))
            pause = min(max(1.0, 2 * pause), LONGEST_PAUSE_S) if failed else 0.0
            if stopping:
                return

    def _more_to_do(self) -> bool:
        return self._waiting.values >= WRITE_VALUES or time.monotonic() >= self._house_at

    def _try(self, work: Callable[[], None]) -> bool:
        """Whether `work` could be done; what is wrong is told once."""
        try:
            work()
        except Exception as error:  # whatever it is: this thread has to go on
            if self._troubles.get(work) != str(error):
                unforeseen = None if isinstance(error, HistoryError) else error
                log.error(
                    "history cannot be kept", extra={"cause": str(error)}, exc_info=unforeseen
                )
            self._troubles[work] = str(error)
            return False
        if self._troubles.pop(work, None) is not None:
            log.info("history is kept again")
        return True

    def _flush(self) -> None:
        rows, position = self._waiting.first(WRITE_VALUES)
        while position:
            self._engine.write(rows, position)
            self._waiting.done(position)
            self._written()
            rows, position = self._waiting.first(WRITE_VALUES)

    def _keep_house(self) -> None:
        if time.monotonic() < self._house_at:
            return
        if not self._engine.keep_house(time.time()):
            self._house_at = time.monotonic() + self._house_s
