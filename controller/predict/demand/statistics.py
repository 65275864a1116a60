"""The models of the forecasting literature, per series: Theta, AutoETS and AutoARIMA.

They come from statsforecast, which is the optional extra `statistics`. Each is fitted when it
is asked, on the last weeks of one series, and costs from some milliseconds (Theta) to seconds
(AutoARIMA): they are for series on which the model for all VMs does badly.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from controller.predict.demand.series import DAY_BINS, Array, Panel
from controller.predict.demand.targets import QUANTILES, Target

#: Steps of the past that a fit sees: two weeks of hours, two days of 5 minutes, the days
#: that there are. More makes ARIMA slow and helps little.
_STEPS = {Target.FIVE_MINUTES: 2 * DAY_BINS, Target.DAY_PEAK: 60}
_HOURS = 14 * 24
#: Least steps for a fit.
_LEAST = 12
#: Statsforecast's central intervals in per cent whose upper ends are our upper quantiles.
_CENTRAL = [round(200 * level - 100) for level in QUANTILES[1:]]


@dataclass(frozen=True, slots=True)
class Statistical:
    """One of the models of statsforecast; `make` gives it for a season's length."""

    name: str
    make: Callable[[int], Any]

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; series with hardly any past, or on which the fit fails, are NaN."""
        series = target.series(past.values)[:, -_STEPS.get(target, _HOURS) :]
        out = np.full((len(past), steps, len(QUANTILES)), np.nan)
        for row, values in enumerate(series):
            filled = _filled(np.asarray(values, dtype=np.float64))
            if len(filled) >= _LEAST:
                out[row] = self._one(filled, target, steps)
        return out

    def _one(self, values: Array, target: Target, steps: int) -> Array:
        if np.ptp(values) == 0:  # the fits divide by the variance
            return np.full((steps, len(QUANTILES)), values[-1])
        # At 5 minutes a season of a day is 288 steps, which these models cannot carry.
        season = 1 if target is Target.FIVE_MINUTES else target.season
        if len(values) < 2 * season + 2:
            season = 1
        try:
            with warnings.catch_warnings():
                # AutoARIMA tries many models, and leaves those that do not converge.
                warnings.filterwarnings("ignore", message="possible convergence problem")
                told = self.make(season).forecast(y=values, h=steps, level=_CENTRAL)
        except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError):
            # A series may be too odd for a family of models; another one is chosen then.
            return np.full((steps, len(QUANTILES)), np.nan)
        columns = [told["mean"], *(told[f"hi-{level}"] for level in _CENTRAL)]
        return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def available() -> tuple[Statistical, ...]:
    """The models that can be used: none where statsforecast is not installed."""
    if importlib.util.find_spec("statsforecast") is None:
        return ()
    models = importlib.import_module("statsforecast.models")
    return (
        Statistical("theta", lambda season: models.Theta(season_length=season)),
        Statistical("auto-ets", lambda season: models.AutoETS(season_length=season)),
        Statistical(
            "auto-arima",
            lambda season: models.AutoARIMA(
                season_length=season, max_p=3, max_q=3, max_P=1, max_Q=1, approximation=True
            ),
        ),
    )


def _filled(values: Array) -> Array:
    """From the first known value on, with gaps on straight lines between their neighbours."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.empty(0)
    at = np.arange(known[0], len(values))
    return np.asarray(np.interp(at, known, values[known]))
