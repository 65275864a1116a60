"""What is forecast: values of 5 minutes, means and peaks of hours, and the peak of a day.

Each target turns the grid into a series of its own step, counted backward from the moment of
the forecast, so that a model of series can forecast any of them.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from controller.predict.demand.series import DAY_BINS, HOUR_BINS, STEP, Array, gaps_allowed

#: The quantiles that every forecast has.
QUANTILES = (0.5, 0.9, 0.95, 0.99)
#: Series that are looked at together.
_PART = 64


class Target(StrEnum):
    """A series that is forecast."""

    FIVE_MINUTES = "5min"
    HOURS = "hours"
    HOUR_PEAKS = "hour-peaks"
    DAY_PEAK = "day-peak"

    @property
    def bins(self) -> int:
        """Bins of 5 minutes in a step."""
        return {"5min": 1, "day-peak": DAY_BINS}.get(self.value, HOUR_BINS)

    @property
    def steps(self) -> int:
        """Steps in 24 hours, which is how far every forecast reaches."""
        return DAY_BINS // self.bins

    @property
    def seconds(self) -> int:
        """Seconds of a step."""
        return self.bins * STEP

    @property
    def season(self) -> int:
        """Steps after which a day, or for peaks of days a week, repeats."""
        return 7 if self is Target.DAY_PEAK else self.steps

    @property
    def peak(self) -> bool:
        """Whether it is the largest value of each step, rather than the mean."""
        return self in (Target.HOUR_PEAKS, Target.DAY_PEAK)

    def series(self, values: Array) -> Array:
        """`values` [series, bins] as [series, whole steps], the last step ending with them.

        A step is known where at least half of its bins are.
        """
        if self.bins == 1:
            return values
        whole = values.shape[1] // self.bins * self.bins
        cut = values[:, values.shape[1] - whole :]
        parts = cut.reshape(len(values), whole // self.bins, self.bins)
        known = np.isfinite(parts).sum(axis=2) * 2 >= self.bins
        with gaps_allowed():
            told = np.nanmax(parts, axis=2) if self.peak else np.nanmean(parts, axis=2)
        return np.where(known, told, np.nan).astype(values.dtype)


def seasonal_error(series: Array, season: int) -> Array:
    """Mean absolute difference to a season before, per row: the scale of MASE (Hyndman and
    Koehler 2006). NaN where fewer values than a quarter of a season, or none, are known that are
    a season apart: the first few often happen to be the same."""
    least = max(1, season // 4)
    out = np.empty(len(series), dtype=series.dtype)
    # In parts that a processor's cache holds.
    for at in range(0, len(series), _PART):
        part = series[at : at + _PART]
        apart = np.abs(part[:, season:] - part[:, :-season])
        with gaps_allowed():
            mean = np.nanmean(apart, axis=1)
        out[at : at + _PART] = np.where(np.isfinite(apart).sum(axis=1) >= least, mean, np.nan)
    return out


def pinball(actual: Array, quantiles: Array) -> Array:
    """Pinball loss [..., quantiles] of `quantiles` [..., quantiles] against `actual` [...]
    (Koenker and Bassett 1978), in the unit of both; NaN where `actual` is."""
    miss = actual[..., None] - quantiles
    levels = np.asarray(QUANTILES)
    return np.asarray(np.maximum(levels * miss, (levels - 1) * miss))
