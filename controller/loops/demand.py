"""What will each VM need? Told anew every hour, from the history, and learned anew every day.

    history ─▶ panel ─▶ [ settle ─▶ forecast ─▶ keep ]   in a process beside the brain's
                          ledger      models    latest     (`controller.predict.demand.work`)

A metric that fails is tried again within minutes and keeps no other from its turn; what was
forecast last stays where it is, and so does the last good model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from controller.decide.bandwidth.qos import QosPolicy
from controller.history.history import History
from controller.loops.base import Ground
from controller.loops.capacities import capacities
from controller.loops.kindred import kindred
from controller.model.nouns import Vm
from controller.model.state import State
from controller.observe.behaviour.album import Role, roles
from controller.predict.demand import work
from controller.predict.demand.events import Calendar, CalendarError, load, recorded
from controller.predict.demand.series import DAY_BINS, STEP, WINDOW, Metric, Panel, read
from controller.predict.demand.work import Order
from controller.settings import ForecastSettings
from controller.store import Store

log = logging.getLogger(__name__)

#: Where everything lies, in `state_dir`.
DIRECTORY = "demand"
#: Seconds after which a metric that failed, or had no samples, is tried again, at most.
AGAIN_S = 300.0
#: Bins that are read for a round: what models look at, and three days to try them on.
_BINS = WINDOW + 3 * DAY_BINS
#: VMs that are read at once.
_READ = 2_000


class DemandFailed(Exception):  # noqa: N818 - it is told as the loop's trouble
    """Some metrics were not forecast or learned: which, and why."""


class Demand:
    """The loop of forecasts. `now` is when it begins, in Unix seconds: the first round is a
    look later, so that a start is not made slower by it."""

    name = "demand"

    def __init__(
        self, settings: ForecastSettings, policy: QosPolicy, state_dir: Path, now: float
    ) -> None:
        self.every_s = settings.every_s
        self._settings = settings
        self._policy = policy
        self._place = state_dir / DIRECTORY
        first = now + settings.every_s
        self._round_due = dict.fromkeys(map(Metric, settings.metrics), first)
        self._learn_due: dict[str, float] | None = None
        self._file = CalendarFile(settings.calendar)
        self._calendar: Calendar | None = None

    async def turn(self, ground: Ground) -> None:
        """Forecast and learn what is due. Raises DemandFailed for what did not work."""
        now = time.time()
        state = ground.state()
        calendar = self._known(state, now)
        due = [metric for metric, when in self._round_due.items() if when <= now]
        if not state.vms or not due:
            self._file.complain()
            return
        history = await ground.history()
        played = await asyncio.to_thread(_roles, ground.store)
        vms = tuple(sorted(state.vms))
        memory = await asyncio.to_thread(_memory, history, vms, now)
        order = self._order(state, calendar, kindred(state.vms, played, memory))
        limits = {
            metric: capacities(state, self._policy, self._settings, metric, vms, memory)
            for metric in self._round_due
        }
        soon = min(AGAIN_S, self._settings.round_s)
        wrong = []
        for metric in due:
            try:
                some = await self._forecast(ground, history, order, metric, limits[metric], now)
                self._round_due[metric] = now + (self._settings.round_s if some else soon)
            except Exception as error:  # whatever it is: others have their turn
                log.exception("no forecast was made", extra={"metric": str(metric)})
                self._round_due[metric] = now + soon
                wrong.append(f"{metric}: {error}")
        wrong += await self._learn(ground, history, order, now)
        if wrong:
            raise DemandFailed("; ".join(wrong))
        self._file.complain()

    def _known(self, state: State, now: float) -> Calendar:
        """What is known to come, from the file and the store; all is due where it changed."""
        told = recorded(state.calendar_events.values())
        calendar = Calendar((*self._file.read().events, *told.events))
        if self._calendar is not None and calendar != self._calendar:
            self._round_due = dict.fromkeys(self._round_due, now)
        self._calendar = calendar
        return calendar

    def _order(self, state: State, calendar: Calendar, kin: Mapping[str, tuple[str, ...]]) -> Order:
        return Order(
            self._place,
            calendar,
            groups(state.vms),
            kin,
            self._settings.five_minute_steps,
            self._settings.slow_vms,
            self._settings.memory_days * 86_400.0,
        )

    async def _forecast(
        self,
        ground: Ground,
        history: History,
        order: Order,
        metric: Metric,
        limits: Sequence[float],
        now: float,
    ) -> bool:
        """Forecast one metric of VMs that can use so much; whether anything is known of it."""
        vms = tuple(order.group_of)
        panel = await asyncio.to_thread(panel_of, history, metric, vms, now, _BINS, limits)
        if not np.isfinite(panel.values).any():
            return False
        done = await ground.slow.run(work.forecast, order, panel)
        log.info(
            "demand is forecast",
            extra={
                "metric": str(metric),
                "vms": done.vms,
                "refused": len(done.refused),
                "settled": done.settled,
                "chosen": dict(done.chosen),
            },
        )
        return True

    async def _learn(self, ground: Ground, history: History, order: Order, now: float) -> list[str]:
        """Learn what is due, one family of metrics a turn; what went wrong."""
        families: dict[str, list[Metric]] = {}
        for metric in self._round_due:
            families.setdefault(metric.family, []).append(metric)
        if self._learn_due is None:
            made = await ground.slow.run(work.made, self._place, tuple(families))
            again = self._settings.retrain_s
            self._learn_due = {f: made[f] + again if f in made else now for f in families}
        due = [family for family, when in self._learn_due.items() if when <= now]
        if not due:
            return []
        family = due[0]
        vms = _some(tuple(order.group_of), self._settings.learn_vms)
        bins = int(self._settings.learn_days * DAY_BINS)
        try:
            panels = [
                await asyncio.to_thread(panel_of, history, metric, vms, now, bins)
                for metric in families[family]
            ]
            learned = await ground.slow.run(work.learn, order, panels, int(now))
        except Exception as error:  # whatever it is: forecasts go on
            log.exception("nothing was learned", extra={"family": family})
            self._learn_due[family] = now + self._settings.round_s
            return [f"learning {family}: {error}"]
        # Sooner where there is no model yet, since the past may just be too short for one.
        pause = self._settings.retrain_s if learned.some else self._settings.round_s
        self._learn_due[family] = now + pause
        log.info(
            "demand is learned" if learned.taken else "the model in use stays",
            extra={"family": family, "cause": learned.reason},
        )
        return []


class CalendarFile:
    """The calendar that an operator edits; where it cannot be used, the last good one holds."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._mark: int | None = None
        self._good = Calendar()
        self._wrong: CalendarError | None = None

    def read(self) -> Calendar:
        """As it is now."""
        if self._path is None:
            return self._good
        try:
            mark = self._path.stat().st_mtime_ns
            if mark != self._mark:
                self._good, self._mark, self._wrong = load(self._path), mark, None
        except OSError as error:
            self._wrong = CalendarError(f"{self._path}: cannot be read: {error.strerror}")
        except CalendarError as error:
            self._wrong = error
        return self._good

    def complain(self) -> None:
        """Raise CalendarError where the file cannot be used."""
        if self._wrong is not None:
            raise self._wrong


def groups(vms: Mapping[str, Vm]) -> dict[str, str]:
    """The group of each VM that events may name: its first, or else its tenant."""
    return {key: vm.groups[0] if vm.groups else vm.tenant for key, vm in sorted(vms.items())}


def panel_of(
    history: History,
    metric: Metric,
    vms: Sequence[str],
    now: float,
    bins: int,
    limits: Sequence[float] | None = None,
) -> Panel:
    """What `history` has of `vms` up to the last whole bin before `now`; `limits` is what each
    can use, in the metric's unit. Raises HistoryError."""
    end = int(now) // STEP * STEP
    parts = [
        read(history, metric, vms[at : at + _READ], end, bins) for at in range(0, len(vms), _READ)
    ]
    capacity = np.full(len(vms), np.nan) if limits is None else np.asarray(limits, float)
    values = np.concatenate([part.values for part in parts])
    return Panel(metric, tuple(vms), values, end, capacity)


def _memory(history: History, vms: Sequence[str], now: float) -> dict[str, float]:
    """Bytes that each VM was last given, of those of which it is known. Raises HistoryError."""
    end = int(now) // STEP * STEP
    found: dict[str, float] = {}
    for at in range(0, len(vms), _READ):
        names = vms[at : at + _READ]
        sizes = history.read_many("memory_size", end - 86_400, end, 3_600, "max", names).values
        known = (row[np.isfinite(row)] for row in sizes)
        found |= {vm: float(row[-1]) for vm, row in zip(names, known, strict=True) if len(row)}
    return found


def _roles(store: Store) -> list[Role]:
    with store.reading() as connection:
        return roles(connection)


def _some(vms: tuple[str, ...], most: int) -> tuple[str, ...]:
    """At most `most` of `vms`, evenly spread."""
    every = -(-len(vms) // most)
    return vms[:: max(1, every)]
