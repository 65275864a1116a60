"""What a model for all VMs sees of each: the past of a series as numbers without a unit.

All values of a series are told relative to a *base*, in units of a *scale*: the base is the
simple forecast that was best for this series in its last week (recent level, the day before,
the week before, or the mean of seven days at that time), and the scale is the seasonal naive
error. So a VM that computes at 2 per cent and one that computes at 90 look alike where they
behave alike, and what was learned from some VMs holds for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.rhythms import Rhythm, bursts, latest, repeated, rhythms
from controller.predict.demand.series import (
    DAY_BINS,
    HOUR_BINS,
    WINDOW,
    Array,
    Panel,
    gaps_allowed,
)
from controller.predict.demand.targets import Target, seasonal_error

#: Of what a series was at least, a scale may be this share: below it changes are noise.
_LEAST_SHARE = 1e-3
_DAYS = WINDOW // DAY_BINS
_DAY = range(1, 25)
_MEANS = (3, 6, 12, 36, 72, 144, 288, 2016)
_PEAKS = (6, 12, 36, 72, 288, 2016)
_QUANTILES = (0.1, 0.5, 0.9, 0.95, 0.99)
#: Half widths, in steps, of the means around the same time on other days.
_AROUND = {Target.FIVE_MINUTES: (1, 6), Target.HOURS: (1,), Target.HOUR_PEAKS: (1,)}
#: Steps of the recent level, and how long before a step it typically was.
_LEVEL = {Target.FIVE_MINUTES: (13, 12), Target.HOURS: (3, 13), Target.HOUR_PEAKS: (6, 15)}


@dataclass(frozen=True, slots=True)
class Design:
    """Values for each series and, within it, each lead. A target's value is base + scale * y."""

    values: NDArray[np.float32]  # [columns, series * leads]
    columns: tuple[str, ...]
    levels: int  # of the columns: the first ones, which are values that the series had
    base: Array  # [series, leads]
    scale: Array  # [series]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The values as [series * leads, columns]."""
        return self.values.T


@dataclass(slots=True)
class Summary:
    """What several targets need of the same window; computed once."""

    panel: Panel
    window: Array  # [series, WINDOW]
    levels: dict[str, Array] = field(default_factory=dict)  # in the metric's unit, to be shifted
    spreads: dict[str, Array] = field(default_factory=dict)  # in the metric's unit
    counts: dict[str, Array] = field(default_factory=dict)  # of bins, and shares of them
    error: Array = field(default_factory=lambda: np.empty(0))  # of the seasonal naive, 5 minutes
    rhythms: list[Rhythm] = field(default_factory=list)


def summarise(panel: Panel) -> Summary:
    """The parts of a design that no target or lead changes."""
    window = panel.window().astype(np.float32)
    out = Summary(panel, window)
    for back in (1, 2, 3, 4, 5, 6, 12):
        out.levels[f"last{back}"] = window[:, -back]
    trailing = _Trailing(window, max(_MEANS))
    for bins in _MEANS:
        out.levels[f"mean{bins}"] = trailing.mean(bins)
    for bins in _PEAKS:
        out.levels[f"max{bins}"] = np.fmax.reduce(window[:, -bins:], axis=1)
    for bins in (12, 288):
        out.levels[f"min{bins}"] = np.fmin.reduce(window[:, -bins:], axis=1)
    for bins, levels in ((12, (0.5,)), (36, (0.5, 0.9)), (288, _QUANTILES), (2016, _QUANTILES)):
        for level, value in zip(levels, known_quantiles(window[:, -bins:], levels), strict=True):
            out.levels[f"q{level}of{bins}"] = value
    moves = _Trailing(np.abs(np.diff(window[:, -2017:], axis=1)), 2016)
    for bins in (6, 12, 72, 288, 2016):
        out.spreads[f"move{bins}"] = moves.mean(bins)
    for bins in (12, 72, 288, 2016):
        out.spreads[f"std{bins}"] = trailing.deviation(bins)
    out.counts |= _high(out)
    low, middle, high, top = (out.levels[f"q{level}of2016"] for level in (0.1, 0.5, 0.95, 0.99))
    out.counts |= bursts(window, middle, top)
    out.rhythms = rhythms(window, low, middle, high, top)
    for rhythm in out.rhythms:
        out.counts[f"{rhythm.name}_lag"] = rhythm.lag.astype(np.float32)
        out.counts[f"{rhythm.name}_like"] = rhythm.likeness
    out.error = seasonal_error(window, DAY_BINS)
    return out


def design(summary: Summary, target: Target, leads: Sequence[int] | NDArray[np.int64]) -> Design:
    """The rows for `leads` (1 is the step that begins now) of `target`."""
    steps = np.asarray(leads, dtype=np.intp)
    series = target.series(summary.window)
    scale = scales(summary.panel, series, target, summary.error)
    with gaps_allowed():
        if target is Target.DAY_PEAK:
            relative, spread, base = _days(summary, series)
        else:
            relative, spread, base = _steps(summary, series, target, steps)
    base = _known(base, summary)
    shape = base.shape
    unit = scale[:, None]
    columns: dict[str, Array] = {}
    for name, value in (summary.levels | relative).items():
        columns[name] = (_wide(value, shape) - base) / unit
    levels = len(columns)
    for name, value in (summary.spreads | spread).items():
        columns[name] = _wide(value, shape) / unit
    for name, value in summary.counts.items():
        columns[name] = _wide(value, shape)
    columns["base"] = base / unit
    columns["scale"] = _wide(scale / summary.panel.metric.resolution, shape)
    columns["lead"] = np.broadcast_to(steps.astype(np.float32), shape)
    columns |= _clock(summary.panel.end, target, steps, shape)
    values = np.empty((len(columns), *shape), dtype=np.float32)
    for column, value in zip(values, columns.values(), strict=True):
        column[...] = value
    return Design(values.reshape(len(columns), -1), tuple(columns), levels, base, scale)


def together(parts: Sequence[Design]) -> Design:
    """The rows of all `parts`, which are of one target and the same leads."""
    return Design(
        np.concatenate([part.values for part in parts], axis=1),
        parts[0].columns,
        parts[0].levels,
        np.concatenate([part.base for part in parts]),
        np.concatenate([part.scale for part in parts]),
    )


def _high(summary: Summary) -> dict[str, Array]:
    """When values last were high (above the middle between median and peak of the day), and
    how often they are."""
    high = (summary.levels["q0.5of288"] + summary.levels["max288"]) / 2
    with gaps_allowed():
        above = summary.window[:, -7 * DAY_BINS :] > high[:, None]
    since, lasting = latest(above)
    shares = {f"high{bins}": above[:, -bins:].mean(axis=1) for bins in (12, 72, 288, 2016)}
    return {"since_high": since, "high_for": lasting, **shares}


def scales(panel: Panel, series: Array, target: Target, error: Array) -> Array:
    """What errors of `series` are measured by: its seasonal naive error (of days: between one
    and the next), that of 5 minutes where there is none, and never next to nothing."""
    own = seasonal_error(series, 1 if target is Target.DAY_PEAK else target.season)
    with gaps_allowed():
        mean = np.nan_to_num(np.nanmean(series, axis=1))
    least = np.maximum(_LEAST_SHARE * mean, panel.metric.resolution)
    usable = np.where(np.isfinite(own), own, np.nan_to_num(error))
    # Where not even a day is known, the level is all that there is to measure by.
    short = ~np.isfinite(own) & ~np.isfinite(error)
    return np.asarray(np.maximum(np.where(short, 0.3 * mean, usable), least))


def usual_scale(panel: Panel, target: Target) -> Array:
    """The scale of each series over all of the panel, however long."""
    error = seasonal_error(panel.values, DAY_BINS)
    return scales(panel, target.series(panel.values), target, error)


def known_quantiles(values: Array, levels: Iterable[float]) -> list[Array]:
    """For each level the smallest known value of a row that at least that share of the row's
    known values do not exceed; NaN where none is known."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(values).sum(axis=1)
    found = []
    for level in levels:
        at = np.maximum(np.ceil(level * count).astype(np.intp) - 1, 0)
        found.append(np.take_along_axis(ordered, at[:, None], axis=1)[:, 0])
    return found


def moving_mean(series: Array, half: int) -> Array:
    """Mean of the known values within `half` steps of each, [series, steps]."""
    width = 2 * half + 1
    padded = np.pad(series, ((0, 0), (half, half)), constant_values=np.nan)
    known = np.isfinite(padded)
    sums = _sums(np.where(known, padded, 0.0))
    counts = _sums(known)
    count = counts[:, width:] - counts[:, :-width]
    with gaps_allowed():
        return np.asarray((sums[:, width:] - sums[:, :-width]) / np.where(count, count, np.nan))


def means_around(series: Array, places: NDArray[np.intp], half: int) -> Array:
    """Mean of the known values within `half` steps of each of `places`, [series, *places]."""
    sums = np.zeros((len(series), *places.shape))
    counts = np.zeros(sums.shape, dtype=np.int32)
    for shift in range(-half, half + 1):
        at = places + shift
        values = np.take(series, at, axis=1, mode="clip")
        known = np.isfinite(values) & (at >= 0) & (at < series.shape[1])
        sums += np.where(known, values, 0.0)
        counts += known
    return np.asarray(sums / np.where(counts, counts, np.nan))


class _Trailing:
    """Means and deviations of the last columns, for widths of up to `most`."""

    def __init__(self, values: Array, most: int) -> None:
        recent = values[:, -most:]
        self._known = np.isfinite(recent)
        with gaps_allowed():
            self._middle = np.nan_to_num(np.nanmean(recent, axis=1, dtype=np.float64))
        self._centred = np.where(self._known, recent - self._middle[:, None], 0.0)

    def mean(self, width: int) -> Array:
        return np.asarray(self._middle + self._offset(width))

    def deviation(self, width: int) -> Array:
        squares = (self._centred[:, -width:] ** 2).sum(axis=1) / self._count(width)
        return np.asarray(np.sqrt(np.maximum(squares - self._offset(width) ** 2, 0.0)))

    def _offset(self, width: int) -> Array:
        return np.asarray(self._centred[:, -width:].sum(axis=1) / self._count(width))

    def _count(self, width: int) -> Array:
        count = self._known[:, -width:].sum(axis=1)
        return np.where(count, count, np.nan)


def _sums(values: NDArray[np.generic]) -> Array:
    """Cumulative sums with a zero in front."""
    return np.pad(np.cumsum(values, axis=1, dtype=np.float64), ((0, 0), (1, 0)))


def _wide(value: Array, shape: tuple[int, ...]) -> Array:
    return value if value.ndim == 2 else np.broadcast_to(value[:, None], shape)


def _known(base: Array, summary: Summary) -> Array:
    """`base` with its gaps filled by the best that is known of the level."""
    for name in ("q0.5of12", "mean36", "mean288", "mean2016"):
        level = summary.levels.get(name)
        if level is not None:
            base = np.where(np.isnan(base), level[:, None], base)
    with gaps_allowed():
        ever = np.nanmean(summary.window, axis=1)
    return np.where(np.isnan(base), np.nan_to_num(ever)[:, None], base)


def _steps(
    summary: Summary, series: Array, target: Target, leads: NDArray[np.intp]
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Columns of targets whose season is a day: levels, spreads, and the base."""
    season, length = target.season, series.shape[1]
    days = np.arange(1, _DAYS + 1)
    past = length + leads[None, :] - 1 - season * days[:, None]
    same = series[:, past]  # [series, days, leads]
    level = _recent(summary, series, target)
    relative = {f"day{day}": same[:, day - 1] for day in (1, 2, 3, 7, 14)}
    week = same[:, :7]
    relative["level"] = np.broadcast_to(level[:, None], (len(level), len(leads)))
    relative["week_mean"] = np.nanmean(week, axis=1)
    relative["week_max"] = np.fmax.reduce(week, axis=1)
    relative["week_min"] = np.fmin.reduce(week, axis=1)
    relative["week_median"] = _median(week)
    relative["all_mean"] = np.nanmean(same, axis=1)
    relative["all_max"] = np.fmax.reduce(same, axis=1)
    for half in _AROUND[target]:
        around = means_around(series, past, half)
        for day in (1, 2, 7):
            relative[f"around{half}_day{day}"] = around[:, day - 1]
        relative[f"around{half}_week"] = np.nanmean(around[:, :7], axis=1)
        relative[f"around{half}_weekday"] = np.nanmean(around[:, [6, 13]], axis=1)
    near = [np.clip(past + shift, 0, length - 1) for shift in (-1, 0, 1)]
    pool = np.concatenate([series[:, at] for at in near], axis=1)
    relative |= _ranks("slot", pool)
    relative |= _hours(summary, series, target, leads)
    errors = _base_errors(series, target)
    choices = np.stack([relative[n] for n in ("level", "day1", "day7", "week_mean")], axis=1)
    best = np.argmin(np.where(np.isnan(errors), np.inf, errors), axis=1)
    base = np.take_along_axis(choices, best[:, None, None], axis=1)[:, 0]
    base = np.where(np.isnan(base), level[:, None], base)
    spread = {f"error{kind}": errors[:, kind] for kind in range(errors.shape[1])}
    spread["error"] = summary.error
    return relative, spread, base


def _recent(summary: Summary, series: Array, target: Target) -> Array:
    """The recent level of each series, which one value out of line does not move."""
    if target is Target.FIVE_MINUTES:
        return summary.levels["q0.5of12"]
    return np.asarray(np.nanmean(series[:, -_LEVEL[target][0] :], axis=1))


def _hours(
    summary: Summary, series: Array, target: Target, leads: NDArray[np.intp]
) -> dict[str, Array]:
    """What repeats every hour, and how the last hours were."""
    out: dict[str, Array] = {}
    if target is Target.FIVE_MINUTES:
        same = [WINDOW + (leads - 1) % HOUR_BINS - HOUR_BINS * hour for hour in range(1, 13)]
        minute = np.stack([summary.window[:, at] for at in same], axis=1)
        for hour in (1, 2, 3, 4, 6, 12):
            out[f"hour{hour}"] = minute[:, hour - 1]
        out["hours_mean"] = np.nanmean(minute[:, :6], axis=1)
        out["hours_max"] = np.fmax.reduce(minute[:, :6], axis=1)
        out["hours_min"] = np.fmin.reduce(minute[:, :6], axis=1)
        out["hours12_mean"] = np.nanmean(minute, axis=1)
        place = (leads - 1) % HOUR_BINS
        near = [WINDOW + place - HOUR_BINS * hour + s for hour in _DAY for s in (-1, 0, 1)]
        pool = [summary.window[:, np.minimum(at, WINDOW - 1)] for at in near]
        week = summary.window[:, -7 * DAY_BINS :].reshape(len(series), -1, HOUR_BINS)
        out |= {name: value[:, place] for name, value in _ranks("minute_week", week).items()}
        out |= repeated(summary.window, summary.rhythms, leads)
        return out | _ranks("minute", np.stack(pool, axis=1))
    if target is Target.HOUR_PEAKS:
        for hour in (1, 2, 3, 4, 6):
            out[f"peak{hour}"] = series[:, -hour]
        levels = (0.1, 0.5, 0.9)
        for level, value in zip(levels, known_quantiles(series[:, -24:], levels), strict=True):
            out[f"peaks_q{level}"] = value
        out["peaks_week"] = np.nanmean(series[:, -168:], axis=1)
    means = Target.HOURS.series(summary.window[:, -3 * HOUR_BINS :])
    for hour in (1, 2, 3):
        out[f"mean_hour{hour}"] = means[:, -hour]
    return out


def _base_errors(series: Array, target: Target) -> Array:
    """Mean absolute error in the last week of each simple forecast that may be the base."""
    season, length = target.season, series.shape[1]
    width, lag = _LEVEL[target]
    half, week = width // 2, 7 * season
    actual = series[:, -week:]

    def before(steps: int) -> Array:
        return series[:, length - week - steps : length - steps]

    level = moving_mean(series[:, length - week - lag - half : length - lag + half], half)
    known = np.isfinite(series)
    filled = np.where(known, series, 0.0)
    sums, counts = np.zeros(actual.shape), np.zeros(actual.shape, dtype=np.int8)
    for day in range(1, 8):
        at = slice(length - week - day * season, length - day * season)
        sums += filled[:, at]
        counts += known[:, at]
    weekly = sums / np.where(counts, counts, np.nan)
    guesses = (level[:, half:-half], before(season), before(week), weekly)
    return np.stack([np.nanmean(np.abs(actual - guess), axis=1) for guess in guesses], axis=1)


def _ranks(name: str, pool: Array) -> dict[str, Array]:
    """Quantiles of the known along axis 1 of [series, values, leads]."""
    ordered = np.sort(pool, axis=1)
    count = np.isfinite(pool).sum(axis=1)
    out = {}
    for level in (0.2, 0.5, 0.8, 0.9, 0.97):
        at = np.maximum(np.ceil(level * count).astype(np.intp) - 1, 0)
        out[f"{name}_q{level}"] = np.take_along_axis(ordered, at[:, None], axis=1)[:, 0]
    return out


def _median(values: Array) -> Array:
    """Median of the known along axis 1, the lower of two, [series, leads]."""
    ordered = np.sort(values, axis=1)
    count = np.isfinite(values).sum(axis=1)
    at = np.maximum(count - 1, 0) // 2
    return np.asarray(np.take_along_axis(ordered, at[:, None], axis=1)[:, 0])


def _days(summary: Summary, peaks: Array) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Columns for the peak of the next day, from the `peaks` of the days before."""
    relative = {f"peak{day}": peaks[:, -day] for day in (1, 2, 3, 4, 5, 6, 7, 14)}
    relative["week_mean"] = np.nanmean(peaks[:, -7:], axis=1)
    relative["all_mean"] = np.nanmean(peaks, axis=1)
    levels = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    for level, value in zip(levels, known_quantiles(peaks, levels), strict=True):
        relative[f"peaks_q{level}"] = value
    for level, value in zip(levels[1:5], known_quantiles(peaks[:, -7:], levels[1:5]), strict=True):
        relative[f"week_q{level}"] = value
    hours = Target.HOURS.series(summary.window)
    days = hours.reshape(len(hours), _DAYS, 24)
    relative["profile"] = np.fmax.reduce(np.nanmean(days[:, -7:], axis=1), axis=1)
    relative["profile_weekday"] = np.fmax.reduce(np.nanmean(days[:, [-7, -14]], axis=1), axis=1)
    relative["hour_mean"] = np.fmax.reduce(hours[:, -24:], axis=1)
    spread = {"error": summary.error, "deviation": np.nanstd(peaks, axis=1)}
    return relative, spread, relative["week_q0.5"][:, None]


def _clock(
    end: int, target: Target, leads: NDArray[np.intp], shape: tuple[int, ...]
) -> dict[str, Array]:
    """Hour of the day and day of the week (UTC, Monday is 0) in the middle of each step."""
    middle = end + (leads - 0.5) * target.seconds
    hour = (middle % 86_400) / 3_600
    day = (middle // 86_400 + 3) % 7
    return {"hour": np.broadcast_to(hour, shape), "weekday": np.broadcast_to(day, shape)}
