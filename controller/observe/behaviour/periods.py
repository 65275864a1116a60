"""Which periods does a series have? Peaks of its spectrum that noise would not make. Pure.

The background is what the spectrum is without its peaks: log power as a quadratic in log
sin(frequency / 2), fitted to the medians of bands, so that white noise, AR(1) and random walks
(power as 1/f²) all come out flat. Over it, the power of noise is exponential (Percival and
Walden 1993, 6.6), and of m frequencies the highest exceeds z with chance 1 - (1 - e^-z)^m
(Fisher 1929, for a known variance). What passes is confirmed by the autocorrelation of the
whitened series.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: The chance that noise has a period.
SIGNIFICANCE = 0.002
#: What comes fewer times is a trend as far as anyone can tell.
CYCLES_LEAST = 4
#: Shorter series, and such with more gaps, tell no periods.
SAMPLES_LEAST = 64
GAPS_MOST = 0.3
#: How well the frequency of a peak is known, in cycles along the series.
_INEXACT = 0.15


@dataclass(frozen=True, slots=True)
class Period:
    """`length` in samples; `strength` is the share of the variance that lies at it and at its
    harmonics (0 to 1)."""

    length: float
    strength: float


def periods(values: ArrayLike, most: int = 3) -> tuple[Period, ...]:
    """The dominant periods of evenly spaced samples, the strongest first, at most `most`.

    What is not finite is a gap. Harmonics belong to their fundamental. None for constants, for
    fewer than SAMPLES_LEAST samples, and for more than GAPS_MOST gaps.
    """
    filled = fill(values)
    if filled is None or filled.size < SAMPLES_LEAST:
        return ()
    size = filled.size
    steady = _detrended(filled)
    deviation = float(steady.std())
    if deviation <= 1e-9 * (1e-9 + float(np.abs(filled).max())):
        return ()
    spectrum = np.fft.rfft(steady / deviation * np.hanning(size))
    power = np.abs(spectrum[1 : size // 2]) ** 2  # power[i] is that of i + 1 cycles
    background = _background(power)
    over = power / background
    bound = -np.log(-np.expm1(np.log1p(-SIGNIFICANCE) / over.size))
    found: list[Period] = []
    taken: list[float] = []
    for cycles in _candidates(over, float(bound)):
        length = size / cycles
        if len(found) == most or any(_related(cycles, other) for other in taken):
            continue
        if _confirmed(_autocorrelation(steady, background, taken), length):
            taken.append(cycles)
            found.append(Period(length, _strength(power, cycles)))
    return tuple(sorted(found, key=lambda period: -period.strength))


def fill(values: ArrayLike) -> Array | None:
    """Gaps filled along straight lines; None where more than GAPS_MOST are gaps, or all."""
    series = np.asarray(values, np.float64).ravel()
    good = np.isfinite(series) & (np.abs(series) < 1e100)
    if not good.any() or np.count_nonzero(~good) > GAPS_MOST * series.size:
        return None
    if good.all():
        return series
    where = np.arange(series.size)
    return np.interp(where, where[good], series[good])


def _detrended(series: Array) -> Array:
    where = np.arange(series.size) - (series.size - 1) / 2
    centred = series - series.mean()
    return np.asarray(centred - where * (where @ centred) / (where @ where))


def _background(power: Array) -> Array:
    """The expected power at each frequency, if there were noise only."""
    logs = np.log(np.maximum(power, 1e-12 * power.max()))
    # The frequency as a difference filter sees it: a random walk is then a straight line.
    where = np.log(np.sin(np.pi / 2 * np.arange(1, power.size + 1) / (power.size + 1)))
    edges = np.unique(np.geomspace(CYCLES_LEAST - 1, power.size, 16).astype(int))
    middles, medians, counts = [], [], []
    for first, last in pairwise(edges):
        middles.append(where[first - 1 : last].mean())
        medians.append(np.median(logs[first - 1 : last]))
        counts.append(last - first + 1)
    weights = np.sqrt(np.minimum(counts, 40))
    line = np.polynomial.Polynomial.fit(middles, medians, 2, w=weights)
    # The median of an exponential variable is ln 2 times its mean.
    return np.asarray(np.exp(line(where)) / np.log(2.0))


def _candidates(over: Array, bound: float) -> list[float]:
    """Peaks above the bound in cycles, in the order in which they are to be tried: the strongest
    first, but before each the lowest one of which it may be a harmonic."""
    inner = np.arange(CYCLES_LEAST - 1, over.size - 1)
    peak = (over[inner] >= over[inner - 1]) & (over[inner] >= over[inner + 1])
    found = inner[peak & (over[inner] > bound)]
    ordered = [_refined(over, int(index)) for index in found[np.argsort(-over[found])][:64]]
    result: list[float] = []
    for cycles in ordered:
        lowest = min(other for other in ordered if other <= cycles and _related(cycles, other))
        result.extend(other for other in (lowest, cycles) if other not in result)
    return result


def _related(cycles: float, other: float) -> bool:
    """Is one a multiple of the other, or the same, as exactly as both are known?"""
    low, high = min(cycles, other), max(cycles, other)
    ratio = high / low
    return abs(ratio - round(ratio)) <= max(0.02, _INEXACT * (1.0 + ratio) / low)


def _refined(over: Array, index: int) -> float:
    """The frequency of a peak in cycles, from a parabola through three logarithms."""
    left, top, right = np.log(over[index - 1 : index + 2] + 1e-300)
    bend = left - 2 * top + right
    aside = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float(index + 1 + np.clip(aside, -0.5, 0.5))


def _strength(power: Array, cycles: float) -> float:
    every = np.arange(1, int(power.size / cycles) + 1) * cycles
    bins = np.unique(np.clip(np.rint(every)[:, None] + np.arange(-2, 1), 0, power.size - 1))
    return float(power[bins.astype(int)].sum() / power.sum())


def _autocorrelation(steady: Array, background: Array, taken: list[float]) -> Array:
    """Of the series with its background made flat and without the peaks (in cycles) that are
    explained already; zero-padded, so that ends do not meet."""
    spectrum = np.fft.rfft(steady)
    flat = np.zeros_like(spectrum)
    flat[1 : background.size + 1] = spectrum[1 : background.size + 1] / np.sqrt(background)
    for cycles in taken:
        every = np.rint(np.arange(1, int(background.size / cycles) + 1) * cycles).astype(int)
        for aside in range(-3, 4):
            flat[np.clip(every + aside, 0, flat.size - 1)] = 0.0
    white = np.fft.irfft(flat, steady.size)
    padded = np.fft.rfft(white, 2 * steady.size)
    product = np.fft.irfft(np.abs(padded) ** 2)[: steady.size]
    lags = steady.size - np.arange(steady.size)
    return np.asarray(product / lags / (product[0] / steady.size))


def _confirmed(correlation: Array, length: float) -> bool:
    """Is the series like itself, a few periods later?"""
    size = correlation.size
    lags = np.rint(length * np.arange(1, 4)).astype(int)
    lags = lags[lags < size]
    near = [correlation[max(1, lag - 1) : lag + 2].max() for lag in lags]
    return bool(np.mean(near) > 1.0 / np.sqrt(size))
