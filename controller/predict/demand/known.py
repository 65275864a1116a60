"""How much is known of each series, and since when?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.parts import CACHED, on_all_cores
from controller.predict.demand.series import STEP, Array, Panel, gaps_allowed


@dataclass(frozen=True, slots=True)
class Known:
    """Of each series: `bins` of 5 minutes that are known, and when the `first` and the `last` of
    them began (Unix s, where there is any); how many lie in the window that models look at
    (`recent`), and the mean `level` of these, NaN where there is none."""

    bins: NDArray[np.intp]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    recent: NDArray[np.intp]
    level: Array

    @classmethod
    def of(cls, past: Panel) -> Known:
        """What is known of `past`."""
        told = on_all_cores(_of, past, CACHED)
        return cls(*(np.concatenate(each) for each in zip(*told, strict=True)))


def _of(past: Panel) -> tuple[NDArray[np.int64], ...]:
    known = np.isfinite(past.values)
    if not past.bins:
        known = np.zeros((len(past), 1), dtype=np.bool_)
    window = past.window()
    with gaps_allowed():
        level = np.nanmean(window, axis=1)
    begin = past.end - past.bins * STEP
    first = begin + STEP * np.argmax(known, axis=1)
    last = begin + STEP * (known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1))
    return known.sum(axis=1), first, last, np.isfinite(window).sum(axis=1), level
