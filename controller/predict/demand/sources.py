"""In words: what a forecast of the global model is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.series import Array
from controller.predict.demand.targets import Target

#: What levels are of, by how their columns are named. The last is what all are told relative to.
SOURCES = (
    "the last hours",
    "the last day",
    "the last weeks",
    "the same time of other days",
    "the same minute of other hours",
    "its own rhythm",
    "the simple forecast that was best of late",
)
_OTHER_DAYS = 3
_NAMES = (
    r"last\d+|mean(3|6|12|36|_hour\d)|max(6|12|36)|min12|q.*of(12|36)|level",
    r"mean(72|144|288)|max(72|288)|min288|q.*of288|hour_mean",
    r"mean2016|max2016|q.*of2016|peaks_week",
    r"day\d+|week_.*|all_.*|around.*|slot_.*|profile.*",
    r"hour\d+|hours.*|minute.*",
    r"(short|long)_.*",
)
#: Of the peak of a day, what the same time of other days is.
_OTHER_PEAKS = "the peaks of other days"
#: Shares below this are not worth a word; and words at most.
_LEAST, _MOST = 0.1, 3


def sources(levels: Sequence[str], target: Target) -> NDArray[np.float32]:
    """Which of SOURCES each of the columns `levels` is of, and the base, [levels + 1, SOURCES].
    Raises ValueError for a column of none."""
    found = np.zeros((len(levels) + 1, len(SOURCES)), dtype=np.float32)
    for row, name in enumerate(levels):
        found[row, _source(name, target)] = 1
    found[-1, _OTHER_DAYS if target is Target.DAY_PEAK else -1] = 1
    return found


def _source(name: str, target: Target) -> int:
    if re.fullmatch(r"peak\d+|peaks_q.*", name):  # steps of the target itself
        return _OTHER_DAYS if target is Target.DAY_PEAK else 1
    for source, names in enumerate(_NAMES):
        if re.fullmatch(names, name):
            return source
    raise ValueError(f"column {name} of {target} is of no known source: give it one of {SOURCES}")


def in_words(shares: Array, target: Target) -> str:
    """A note of how much each of SOURCES counts in a median of `target`, from `shares`
    [SOURCES]; none are those of trees, which choose nothing."""
    if not shares.any():
        return "the median is that of boosted trees"
    first = np.argsort(-shares)[:_MOST].tolist()
    words = list(SOURCES)
    if target is Target.DAY_PEAK:
        words[_OTHER_DAYS] = _OTHER_PEAKS
    told = [f"{words[n]} ({shares[n]:.0%})" for n in first if shares[n] >= _LEAST]
    return f"the median follows {', '.join(told)}"
