"""The seasonal naive forecast, with intervals: what every other model has to be better than."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.predict.demand.features import known_quantiles
from controller.predict.demand.parts import CACHED, on_all_cores
from controller.predict.demand.series import DAY_BINS, Array, Panel, gaps_allowed
from controller.predict.demand.targets import QUANTILES, Target

NAME = "seasonal-naive"

#: Days of past differences that the intervals are made of.
_DAYS = 28


@dataclass(frozen=True, slots=True)
class SeasonalNaive:
    """The value of a day before (of the peak of a day: that of the day before), its median as
    it is, and higher quantiles by adding those of past differences."""

    name: str = NAME

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; series that do not reach a day back are NaN."""
        told = on_all_cores(lambda part: _quantiles(part, target, steps), past, CACHED)
        return np.concatenate(told)


def _quantiles(past: Panel, target: Target, steps: int) -> Array:
    series = target.series(past.values[:, -_DAYS * DAY_BINS :])
    season = 1 if target is Target.DAY_PEAK else target.season
    if series.shape[1] <= season:
        return np.full((len(past), steps, len(QUANTILES)), np.nan)
    middle = _before(series, season, steps)
    differences = series[:, season:] - series[:, :-season]
    upper = known_quantiles(differences, QUANTILES[1:])
    added = np.stack([np.zeros(len(past)), *upper], axis=1)
    return np.asarray(middle[..., None] + added[:, None, :])


def _before(series: Array, season: int, steps: int) -> Array:
    """[series, steps] of the value a season before, or two, or the mean of the last season."""
    rows, length = series.shape
    found = np.full((rows, steps), np.nan)
    for back in (1, 2, 7):
        start = length - back * season
        if start >= 0:
            found = np.where(np.isnan(found), series[:, start : start + steps], found)
    with gaps_allowed():
        level = np.nanmean(series[:, -season:], axis=1)
    return np.where(np.isnan(found), level[:, None], found)
