"""After how long a series repeats itself, whatever the clock says, and how its bursts come.

Jobs run each ten minutes, each 75, each day and a little later. The lags at which a series is
most like itself are peaks of its autocorrelation (by the Wiener-Khinchin theorem): of what it
mostly does, and of its bursts alone, in which the ordinary would hide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.series import DAY_BINS, Array, gaps_allowed

#: Lags, in bins, between which the best is looked for: short ones, and up to a week and a bit.
_RANGES = ((2, 40), (37, 7 * DAY_BINS + 84))
#: Repetitions that are looked at.
_TIMES = 3
_BURSTS = 7 * DAY_BINS
#: Of the highest peak, what another must be to be as good.
_AS_HIGH = 0.95


@dataclass(frozen=True, slots=True)
class Rhythm:
    """The lag [series], in bins, at which each series is most like itself, and how much [series]:
    1 where it repeats exactly. `late` is whether it may come a bin early or late."""

    name: str
    lag: NDArray[np.intp]
    likeness: Array
    late: bool


def rhythms(window: Array, low: Array, middle: Array, high: Array, top: Array) -> list[Rhythm]:
    """Of each row of `window`: of its values between `low` and `high`, and of its bursts, which
    are above the midst of `middle` and `top` (each [series])."""
    with gaps_allowed():
        usual = np.clip(window, low[:, None], high[:, None])
        usual = np.nan_to_num(usual - np.nanmean(usual, axis=1, keepdims=True))
        above = (window > ((middle + top) / 2)[:, None]).astype(np.float32)
    above -= above.mean(axis=1, keepdims=True)
    found = []
    for name, values in (("usual", usual), ("bursts", above)):
        like = _autocorrelation(values)
        for kind, (first, last) in zip(("short", "long"), _RANGES, strict=True):
            lag, likeness = _best(like, first, min(last, like.shape[1] - 1))
            late = name == "bursts" or kind == "long"
            found.append(Rhythm(f"{kind}_{name}", lag, likeness, late))
    return found


def repeated(window: Array, found: list[Rhythm], leads: NDArray[np.intp]) -> dict[str, Array]:
    """What was there one, two and three lags before each of `leads`, [series, leads]."""
    length = window.shape[1]
    out: dict[str, Array] = {}
    for rhythm in found:
        lag = rhythm.lag[:, None]
        nearest = -(-leads[None, :] // lag)
        values = []
        for times in range(_TIMES):
            at = length - 1 + leads[None, :] - (nearest + times) * lag
            values.append(_taken(window, at))
            if rhythm.late:
                around = [_taken(window, at - 1), values[-1], _taken(window, at + 1)]
                out[f"{rhythm.name}_around{times + 1}"] = np.fmax.reduce(around)
        out[f"{rhythm.name}_1"] = values[0]
        out[f"{rhythm.name}_mean"] = np.nanmean(np.stack(values), axis=0)
        out[f"{rhythm.name}_max"] = np.fmax.reduce(values)
    return out


def bursts(window: Array, middle: Array, top: Array) -> dict[str, Array]:
    """Of the last week: how many bursts there were and how long they were, when the last one was,
    and for how much of the usual pause and length it has been so."""
    with gaps_allowed():
        above = window[:, -_BURSTS:] > ((middle + top) / 2)[:, None]
    count = np.maximum((above[:, 1:] & ~above[:, :-1]).sum(axis=1), 1).astype(np.float32)
    length = above.sum(axis=1) / count
    since, lasting = latest(above)
    return {
        "bursts": count,
        "burst_length": length,
        "burst_since": since,
        "burst_for": lasting,
        "burst_due": since * count / _BURSTS,
        "burst_over": lasting / np.maximum(length, 1),
    }


def latest(above: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Columns since the last one that is true (all where none is), and how many are true at the
    end, [series] each."""
    backward = above[:, ::-1]
    since = np.where(above.any(axis=1), np.argmax(backward, axis=1), above.shape[1])
    return since.astype(np.float32), np.argmax(~backward, axis=1).astype(np.float32)


def _autocorrelation(values: Array) -> Array:
    """[series, lags], 1 at lag 0, of `values` without gaps whose means are 0."""
    steps = values.shape[1]
    lags = min(steps, _RANGES[-1][1] + 2)
    # So long that what wraps around meets only zeros, and of small prime factors.
    size = -(-(steps + lags) // 256) * 256
    largest = np.abs(values).max(axis=1, keepdims=True)
    unit = values / np.where(largest > 0, largest, 1)
    power = np.abs(np.fft.rfft(unit, size, axis=1)) ** 2
    like = np.fft.irfft(power, axis=1)[:, :lags]
    # A long lag has fewer pairs to be summed.
    fair = (steps / (steps - np.arange(lags))).astype(np.float32)
    return np.asarray(like / np.maximum(like[:, :1], 1e-12) * fair)


def _best(like: Array, first: int, last: int) -> tuple[NDArray[np.intp], Array]:
    """The first lag from `first` to below `last` at which there is a peak about as high as the
    highest, and its height: -1 without any. Multiples of a lag are as good as the lag, but look
    further back."""
    inner = like[:, first:last]
    peak = (inner >= like[:, first - 1 : last - 1]) & (inner >= like[:, first + 1 : last + 1])
    height = np.where(peak, inner, -1.0)
    at = np.argmax(height >= _AS_HIGH * height.max(axis=1, keepdims=True), axis=1)
    return at + first, height[np.arange(len(like)), at]


def _taken(window: Array, at: NDArray[np.intp]) -> Array:
    return np.take_along_axis(window, np.clip(at, 0, window.shape[1] - 1), axis=1)
