"""How does a metric behave? A vector with no unit: rhythm, scales, trend, bursts, memory. Pure.

The vector does not depend on the unit or on where zero lies, except for burstiness and level,
which ask how a value compares to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pywt
from numpy.typing import ArrayLike, NDArray

from controller.observe.behaviour.periods import SAMPLES_LEAST, Period, fill, periods

Array = NDArray[np.float64]

#: Details of the wavelet transform: of 2, 4, ... 2^LEVELS samples.
LEVELS = 6
_WAVELET = "sym4"
#: Lags of the autocorrelation, in samples.
LAGS = (1, 12)


@dataclass(frozen=True, slots=True)
class Features:
    """The behaviour of one metric over a stretch of samples.

    `wavelet` has the shares of energy of the details from fine to coarse and of the rest, which
    sum to 1 (all 0 for a constant). `trend` is the change along the stretch over the standard
    deviation; `burstiness` (s - m) / (s + m) for mean m and deviation s of what is above the
    minimum, -1 for regular, near 1 for rare bursts (Goh and Barabási 2008); `autocorrelation`
    that at LAGS; `variation` the deviation over the mean absolute value, at most 10.
    """

    periods: tuple[Period, ...]
    wavelet: tuple[float, ...]
    trend: float
    burstiness: float
    autocorrelation: tuple[float, ...]
    variation: float

    def vector(self) -> Array:
        """As numbers, for distances: the strongest period as log2 of samples, 0 if none."""
        first = self.periods[0] if self.periods else Period(1.0, 0.0)
        return np.array(
            (
                np.log2(first.length),
                first.strength,
                *self.wavelet,
                self.trend,
                self.burstiness,
                *self.autocorrelation,
                self.variation,
            )
        )


def features(values: ArrayLike) -> Features | None:
    """The behaviour in evenly spaced samples, gaps as not finite; None where too few are there
    (SAMPLES_LEAST) or too many are gaps (`periods.GAPS_MOST`)."""
    series = fill(values)
    if series is None or series.size < SAMPLES_LEAST:
        return None
    deviation = float(series.std())
    centred = series - series.mean()
    if deviation <= 1e-9 * (1e-9 + float(np.abs(series).max())):
        return Features((), (0.0,) * (LEVELS + 1), 0.0, -1.0, (0.0,) * len(LAGS), 0.0)
    unit = centred / deviation
    where = np.linspace(-0.5, 0.5, series.size)
    above = series - series.min()
    mean = float(above.mean())
    return Features(
        periods(series),
        _wavelet(unit),
        float(where @ unit / (where @ where)),
        (deviation - mean) / (deviation + mean),
        tuple(float(unit[lag:] @ unit[:-lag] / unit.size) for lag in LAGS),
        min(10.0, deviation / float(np.abs(series).mean())),
    )


def _wavelet(unit: Array) -> tuple[float, ...]:
    levels = min(LEVELS, pywt.dwt_max_level(unit.size, _WAVELET))
    parts = pywt.wavedec(unit, _WAVELET, mode="periodization", level=levels)
    energies = [float(np.sum(part**2)) for part in reversed(parts)]
    every = sum(energies)
    padded = [*energies[:-1], *(0.0 for _ in range(LEVELS - levels)), energies[-1]]
    return tuple(energy / every for energy in padded)
