"""How much will each VM want to send and receive now, as was foreseen? From the forecasts that
hold: of these five minutes, else the peak of this hour, else its mean."""

from __future__ import annotations

import logging

from controller.decide.bandwidth.claims import Key
from controller.decide.bandwidth.records import Direction
from controller.predict.demand.latest import Latest, Sheet
from controller.predict.demand.series import Metric
from controller.predict.demand.targets import QUANTILES, Target

log = logging.getLogger(__name__)

#: What is taken for the demand: exceeded in one case of twenty, where meters answer by themselves.
LEVEL = QUANTILES.index(0.95)
_METRICS = {Direction.OUT: Metric.NET_TX, Direction.IN: Metric.NET_RX}
_TARGETS = (Target.FIVE_MINUTES, Target.HOUR_PEAKS, Target.HOURS)


class Foreseen:
    """What `latest` says; a sheet that cannot be read is told of once and stands for nothing."""

    def __init__(self, latest: Latest) -> None:
        self._latest = latest
        self._told: dict[Metric, str] = {}

    def demands(self, now: float) -> dict[Key, float]:
        """bit/s by VM and direction at `now` (Unix seconds), of those VMs that are forecast."""
        found: dict[Key, float] = {}
        for way, metric in _METRICS.items():
            sheet = self._sheet(metric)
            values = {} if sheet is None else _at(sheet, now)
            found |= {(vm, way): 8.0 * octets for vm, octets in values.items()}
        return found

    def _sheet(self, metric: Metric) -> Sheet | None:
        try:
            sheet = self._latest.get(metric)
        except ValueError as error:
            if self._told.get(metric) != str(error):
                log.warning("bandwidth is shared out without forecasts: %s", error)
            self._told[metric] = str(error)
            return None
        self._told.pop(metric, None)
        return sheet


def _at(sheet: Sheet, now: float) -> dict[str, float]:
    """The metric of each VM at `now`; none where the forecasts are over."""
    for target in _TARGETS:
        table = sheet.tables.get(target)
        step = int((now - sheet.origin) // target.seconds)
        if table is not None and 0 <= step < table.quantiles.shape[1]:
            column = table.quantiles[:, step, LEVEL].tolist()
            return dict(zip(sheet.names, column, strict=True))
    return {}
