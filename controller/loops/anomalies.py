"""Which metrics of VMs are out of the ordinary? Each new sample is judged by what came before.

Samples are judged as means over 5 minutes, once those that belong there have had time to arrive.
What was learned is kept in the process that computes, and in files beside the history; after a
restart, samples since the last checkpoint are read again, and what was told before is told no
more (`book`). Where nothing was ever learned, it learns from the history that is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.history.series import Matrix
from controller.loops.base import Ground
from controller.observe.anomalies import alerts, book, detector
from controller.observe.anomalies.alerts import Signal
from controller.observe.anomalies.limits import before, beyond
from controller.observe.anomalies.rules import Rules
from controller.settings import Settings
from controller.store import Transaction

log = logging.getLogger(__name__)

#: Name of the mark up to which what left its pattern was told.
MARK = "anomalies"
#: Where checkpoints lie, in `state_dir`.
DIRECTORY = "anomalies"
#: Seconds of the history from which it learns where nothing was learned before.
LEARN_S = 14 * 86_400.0
#: Seconds between two times that VMs which are gone are forgotten.
KEEP_S = 3_600.0
#: Values that are read and judged at once, and steps of them at most.
VALUES = 2_000_000
STEPS = 288


@dataclass(frozen=True, slots=True)
class Told:
    """Makes alerts of signals, in a transaction; `once` as for `book.enter`."""

    signals: Sequence[Signal]
    rules: Rules
    telling: book.Telling
    mark: tuple[str, float] | None
    now: float
    once: bool = False

    def __call__(self, transaction: Transaction) -> None:
        found = book.enter(
            transaction, self.signals, self.rules, self.telling, self.now, self.mark, once=self.once
        )
        for alert in found:
            fields = {"alert": alert.id, "vm": alert.vm, "kind": alert.kind, "why": alert.why}
            log.warning("out of the ordinary", extra=fields)


class Anomalies:
    """The loop that judges metrics."""

    name = "anomalies"

    def __init__(self, settings: Settings, rules: Rules) -> None:
        self.every_s = settings.alerts.every_s
        self._settings = settings.alerts
        self._rules = rules
        self._telling = book.telling(settings.alerts)
        watched = rules.own_pattern.metrics
        self._config = detector.Config(
            settings.state_dir / DIRECTORY,
            {name: metric.least for name, metric in watched.items()},
            rules.own_pattern.false_per_week,
        )
        self._cadence = self._config.rule.cadence_s
        self._metrics = tuple(dict.fromkeys((*watched, *(one.metric for one in rules.limits))))
        #: Up to when was seen, and the token of what saw it: None before any series is there.
        self._upto: float | None = None
        self._token: int | None = None
        self._marked = False
        self._kept_at = time.time()

    async def turn(self, ground: Ground) -> None:
        """Judge all that has come since."""
        now = time.time()
        end = (now - self._settings.settle_s) // self._cadence * self._cadence
        if not self._metrics or not ground.state().vms or (self._upto or 0.0) >= end:
            return
        if not self._marked:
            await ground.write(_Begin(now))
            self._marked = True
        try:
            await self._stand(ground, now)
            while (self._upto or 0.0) < end:
                await self._advance(ground, end)
            if self._token is not None:
                oldest = end - self._settings.checkpoint_s
                await ground.pool.run(detector.save, self._config, self._token, oldest)
                if now - self._kept_at > KEEP_S:
                    vms = tuple(ground.state().vms)
                    await ground.pool.run(detector.keep, self._config, self._token, vms)
                    self._kept_at = now
        except detector.StaleError:
            self._upto = self._token = None
            raise

    async def _stand(self, ground: Ground, now: float) -> None:
        """Find out from where to go on."""
        oldest = (now - LEARN_S) // self._cadence * self._cadence
        if self._token is None and await asyncio.to_thread(_any, self._config.directory):
            stands = await ground.pool.run(detector.standing, self._config)
            self._upto, self._token = stands.upto, stands.token
        self._upto = max(oldest, self._upto or 0.0)

    async def _advance(self, ground: Ground, end: float) -> None:
        begin = self._upto
        assert begin is not None
        vms = ground.state().vms
        steps = VALUES // (len(vms) * len(self._metrics) + 1)
        to = min(end, begin + self._cadence * min(STEPS, max(1, steps)))
        history = await ground.history()
        known = begin - before(self._rules.limits, self._cadence)
        found = await asyncio.to_thread(history.read_all, self._metrics, known, to, self._cadence)
        signals = beyond(self._rules.limits, found, self._cadence, begin, vms.keys())
        watched = self._config.least
        names, values = await asyncio.to_thread(_series, found, watched, begin, vms.keys())
        if names and self._token is None:
            self._token = (await ground.pool.run(detector.standing, self._config)).token
        if self._token is not None:
            times = begin + self._cadence * np.arange(1, values.shape[1] + 1)
            span = detector.Span(self._token, names, times, values)
            left = await ground.pool.run(detector.advance, self._config, span)
            signals += [alerts.of_finding(finding, *name) for name, finding in left]
        if signals:
            mark = (MARK, to)
            await ground.write(Told(signals, self._rules, self._telling, mark, time.time()))
        self._upto = to


@dataclass(frozen=True, slots=True)
class _Begin:
    """Sets the first mark: of what lies before Pleach looked, nobody is alerted."""

    now: float

    def __call__(self, transaction: Transaction) -> None:
        if book.mark_of(transaction, MARK) is None:
            book.set_mark(transaction, MARK, self.now)


def _any(directory: Path) -> bool:
    return any(directory.glob("bank-*.npz"))


def _series(
    found: Mapping[str, Matrix], watched: Collection[str], begin: float, vms: Collection[str]
) -> tuple[tuple[detector.Name, ...], detector.Array]:
    """The series of VMs that are there, with any sample from `begin` on, by name."""
    names: list[detector.Name] = []
    rows = []
    width = 0
    for metric, matrix in found.items():
        if metric not in watched:
            continue
        values = matrix.values[:, matrix.times >= begin]
        width = values.shape[1]
        for row in np.flatnonzero(np.isfinite(values).any(axis=1)):
            vm = matrix.subjects[row]
            if vm in vms:
                names.append((vm, metric))
                rows.append(values[row])
    return tuple(names), np.array(rows).reshape(len(names), width)
