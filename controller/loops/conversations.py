"""Who talks out of the ordinary? New peers, scans and volumes, from the hours of signatures.

The hour that is not yet over is judged every few minutes, so that a scan is told of while it
lasts. What was told of an hour is not told again (`book.enter`, `once`), whatever is judged anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from controller.loops.anomalies import DIRECTORY, Told
from controller.loops.base import Ground
from controller.observe.anomalies import alerts, book, habits
from controller.observe.anomalies.habits import HOUR_S
from controller.observe.anomalies.rules import Rules
from controller.observe.anomalies.signatures import Deviation, Talk
from controller.settings import Settings
from controller.store import schema

log = logging.getLogger(__name__)

#: Seconds after an hour for which what was counted in it may still come.
SETTLE_S = 120.0
#: Hours from which habits are learned where there are none: as many as they remember.
HOURS = 24 * 28
#: Looks at what came in between two of these.
_SELDOM = 20


class Conversations:
    """The loop that judges who talks to whom."""

    name = "conversations"

    def __init__(self, settings: Settings, rules: Rules) -> None:
        self.every_s = min(300.0, settings.alerts.every_s * _SELDOM)
        self._rules = rules
        self._telling = book.telling(settings.alerts)
        self._file = settings.state_dir / DIRECTORY / "habits.msgpack"

    async def turn(self, ground: Ground) -> None:
        """Judge the hours that are over, and what has been of this one."""
        now = time.time()
        first = await asyncio.to_thread(_first_hour, ground)
        if first is None:
            return
        stands = await ground.pool.run(habits.learned, self._file)
        over = int((now - SETTLE_S) // HOUR_S)  # this one is not
        begin = max(first, over - HOURS)
        hour = begin if stands.hour is None else max(begin, stands.hour + 1)
        while hour < over:
            talks = await asyncio.to_thread(_talks, ground, hour)
            vms = tuple(ground.state().vms)
            found = await ground.pool.run(habits.learn, self._file, stands.token, hour, talks, vms)
            await self._tell(ground, found)
            hour += 1
            if hour == over:
                await ground.pool.run(habits.save, self._file, stands.token)
        for hour in range(over, int(now // HOUR_S) + 1):
            talks = await asyncio.to_thread(_talks, ground, hour)
            found = await ground.pool.run(habits.look, self._file, stands.token, talks)
            await self._tell(ground, found)

    async def _tell(self, ground: Ground, found: Sequence[Deviation]) -> None:
        vms = ground.state().vms
        signals = [alerts.of_deviation(one) for one in found if one.source in vms]
        if signals:
            now = time.time()
            await ground.write(Told(signals, self._rules, self._telling, None, now, once=True))


def _first_hour(ground: Ground) -> int | None:
    with ground.store.reading() as connection:
        found = connection.scalar(select(func.min(schema.signature_hour.c.hour)))
    return None if found is None else int(found)


def _talks(ground: Ground, hour: int) -> list[Talk]:
    """Who talked to whom in an hour, and what was tried and denied."""
    with ground.store.reading() as connection:
        return [*_allowed(connection, hour), *_denied(connection, hour)]


def _allowed(connection: Connection, hour: int) -> list[Talk]:
    c = schema.signature_hour.c
    query = select(c.vm, c.peer, c.protocol, c.port, c.bytes_out, c.external).where(c.hour == hour)
    at = hour * HOUR_S
    return [
        Talk(row.vm, row.peer, row.protocol, row.port, float(row.bytes_out), at, row.external)
        for row in connection.execute(query)
    ]


def _denied(connection: Connection, hour: int) -> list[Talk]:
    """What was tried and came to nothing, as talks of no bytes: a scan is mostly that."""
    c = schema.denial_hour.c
    query = select(c.vm, c.peer, c.protocol, c.port, c.external).where(c.hour == hour)
    return [
        Talk(row.vm, row.peer, row.protocol, row.port, 0.0, hour * HOUR_S, row.external)
        for row in connection.execute(query)
    ]
