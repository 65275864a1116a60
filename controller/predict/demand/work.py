"""What does the brain compute of demand? A round of forecasts each hour, and learning each day.

To be called in a process beside the brain's, always the same one: it keeps what a `Forecaster`
collects as it runs. All that lasts lies in one directory:

    PLACE/models/      trained models         PLACE/ledger.db    how good forecasts were
    PLACE/latest/      the forecasts that hold now
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from controller.predict.demand.events import Calendar
from controller.predict.demand.latest import Latest, sheet
from controller.predict.demand.series import Panel
from controller.predict.demand.targets import Target

if TYPE_CHECKING:
    from controller.predict.demand.forecast import Forecast
    from controller.predict.demand.forecaster import Forecaster

log = logging.getLogger(__name__)

_MODELS, _LEDGER, _LATEST = "models", "ledger.db", "latest"
#: Of this process, by place.
_FORECASTERS: dict[Path, Forecaster] = {}


@dataclass(frozen=True, slots=True)
class Order:
    """What a round needs beside the past: where things lie, what is known to come, the group of
    each VM that events may name, the kinds that it is of (see `newcomers`), how many steps of 5
    minutes are told, for how many VMs of those that are forecast worst slow models are tried,
    and seconds for which scores are kept."""

    place: Path
    calendar: Calendar = field(default_factory=Calendar)
    group_of: Mapping[str, str] = field(default_factory=dict)
    kin: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 12
    slow_vms: int = 0
    memory_s: float = 60 * 86_400.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a round ended: VMs that were forecast and refused, how many earlier forecasts were
    settled by it, and how often each model was chosen for the means of hours."""

    vms: int
    refused: tuple[str, ...]
    settled: int
    chosen: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Learned:
    """How learning ended: whether the new model is taken, whether there is some at all, why."""

    taken: bool
    some: bool
    reason: str


def ledger_of(place: Path) -> Path:
    """Where the record of forecasts lies."""
    return place / _LEDGER


def latest_of(place: Path) -> Latest:
    """The forecasts that hold now."""
    return Latest(place / _LATEST)


def made(place: Path, families: Sequence[str]) -> dict[str, int]:
    """When (Unix s) the newest whole model of each family was made, of those that have one."""
    found = {family: _forecaster(place).store.newest(family) for family in families}
    return {family: kept.about.made for family, kept in found.items() if kept is not None}


def forecast(order: Order, panel: Panel) -> Done:
    """Settle what is over, forecast all VMs of `panel` from its end on, and keep that."""
    forecaster = _ready(order, panel)
    settled = forecaster.settle(panel)
    steps = {target: target.steps for target in Target} | {Target.FIVE_MINUTES: order.steps}
    round_ = forecaster.round(panel, steps, candidates=False)
    forecaster.ledger.remember(round_.told)
    told = {(f.vm, f.target): f for f in round_.forecasts}
    told |= _tried(forecaster, panel, round_.forecasts, order.slow_vms)
    forecaster.ledger.forget(int(panel.end - order.memory_s))
    made_, refused = sheet(list(told.values()))
    for vm in refused:
        log.error("a forecast is refused", extra={"vm": vm, "metric": str(panel.metric)})
    if made_ is not None:
        latest_of(order.place).put(made_)
    chosen = Counter(f.reason.model for f in told.values() if f.target is Target.HOURS)
    return Done(len(panel) - len(refused), refused, settled, dict(chosen))


def learn(order: Order, panels: Sequence[Panel], now: int) -> Learned:
    """Learn one family of metrics anew; on failure the last good model goes on."""
    forecaster = _forecaster(order.place)
    _inform(forecaster, order)
    done = forecaster.retrain([_begun(panel) for panel in panels], now)
    return Learned(done.taken, done.kept is not None, done.reason)


def _forecaster(place: Path) -> Forecaster:
    # Here, because the brain names this module's functions, and needs no scikit-learn itself.
    from controller.predict.demand import statistics
    from controller.predict.demand.forecaster import Forecaster
    from controller.predict.demand.keep import ModelStore
    from controller.predict.demand.ledger import Ledger

    if place not in _FORECASTERS:
        # AutoARIMA costs seconds a forecast.
        others = tuple(m for m in statistics.available() if m.name != "auto-arima")
        store, ledger = ModelStore(place / _MODELS), Ledger(ledger_of(place))
        _FORECASTERS[place] = Forecaster(store, ledger, others=others)
    return _FORECASTERS[place]


def _ready(order: Order, panel: Panel) -> Forecaster:
    """With the newest model of the panel's family, and intervals that are calibrated."""
    forecaster = _forecaster(order.place)
    _inform(forecaster, order)
    forecaster.load(panel.metric.family, again=False)
    if not forecaster.calibrated(panel.metric):
        forecaster.rehearse(panel, tuple(Target), candidates=False)
    return forecaster


def _inform(forecaster: Forecaster, order: Order) -> None:
    forecaster.calendar = order.calendar
    forecaster.group_of, forecaster.kin = order.group_of, order.kin


def _tried(
    forecaster: Forecaster, panel: Panel, told: Sequence[Forecast], count: int
) -> dict[tuple[str, Target], Forecast]:
    """Means of hours of those VMs that are forecast worst, by slow models too."""
    losses = {
        f.vm: f.reason.losses[f.reason.model]
        for f in told
        if f.target is Target.HOURS and f.reason.model in f.reason.losses
    }
    worst = sorted(losses, key=lambda vm: losses[vm], reverse=True)[:count]
    if not worst or not forecaster.others:
        return {}
    place = {name: row for row, name in enumerate(panel.names)}
    some = panel.rows([place[vm] for vm in worst])
    again = forecaster.round(some, {Target.HOURS: Target.HOURS.steps})
    slow = {model.name for model in forecaster.others}
    forecaster.ledger.remember([t for t in again.told if t.model in slow])
    return {(f.vm, f.target): f for f in again.forecasts}


def _begun(panel: Panel) -> Panel:
    """`panel` from the first bin on of which anything is known."""
    known = np.flatnonzero(np.isfinite(panel.values).any(axis=0))
    first = int(known[0]) if len(known) else panel.bins
    return Panel(panel.metric, panel.names, panel.values[:, first:], panel.end, panel.capacity)
