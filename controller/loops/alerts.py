"""Which alerts are over, and which are forgotten?"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from controller.loops.base import Ground
from controller.observe.anomalies import book
from controller.observe.anomalies.book import Telling
from controller.observe.anomalies.rules import Rules
from controller.settings import AlertSettings
from controller.store import Transaction

log = logging.getLogger(__name__)


class Keeping:
    """The loop that closes what is quiet and forgets what is old."""

    name = "alerts"

    def __init__(self, settings: AlertSettings, rules: Rules) -> None:
        self.every_s = max(settings.every_s, 1.0)
        self._settings = settings
        self._rules = rules
        self._telling = book.telling(settings)

    async def turn(self, ground: Ground) -> None:
        """Do it once."""
        now = time.time()

        oldest = now - self._settings.memory_s

        def look() -> tuple[frozenset[str], bool]:
            with ground.store.reading() as connection:
                return book.subjects(connection), book.old(connection, oldest)

        about, some_old = await asyncio.to_thread(look)
        gone = about - ground.state().vms.keys()
        if about or some_old:
            await ground.write(_Keep(now, self._rules, gone, self._telling, oldest))


@dataclass(frozen=True, slots=True)
class _Keep:
    now: float
    rules: Rules
    gone: frozenset[str]
    telling: Telling
    oldest: float

    def __call__(self, transaction: Transaction) -> None:
        for alert in book.settle(transaction, self.now, self.rules, self.gone, self.telling):
            log.info("alert is over", extra={"alert": alert.id, "vm": alert.vm})
        forgotten = book.forget(transaction, self.oldest)
        if forgotten:
            log.info("alerts forgotten", extra={"count": forgotten})
