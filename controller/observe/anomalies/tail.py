"""How seldom does a score come so high? Judged by the highest of its own past. Pure.

Peaks over a threshold (Pickands 1975; for streams SPOT, Siffer et al. 2017): what block maxima
exceed a high order statistic by is taken as exponential. Its mean is known from k of them only,
and so the chance of more is that of the predictive distribution, a Pareto one with shape k
(Aitchison and Dunsmore 1975, 2.3): the less past there is, the more it takes to be surprising.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: One in so many block maxima belongs to the tail, but no fewer than so many.
TAIL_SHARE = 16
TAIL_LEAST = 3


@dataclass(frozen=True, slots=True)
class Tail:
    """Tails of scores: each begins at `start`, with the mean excess `mean` of `k` block maxima,
    which are `share` of all blocks. `start` and `mean` have the same shape."""

    start: Array
    mean: Array
    k: int
    share: float

    def bound(self, chance: float) -> Array:
        """The score that a block exceeds with `chance`."""
        above = min(1.0, chance / self.share)
        return np.asarray(self.start + self.k * self.mean * (above ** (-1.0 / self.k) - 1.0))


def tail(peaks: NDArray[np.floating], least: Array) -> Tail:
    """The tails of scores whose block maxima are `peaks` (blocks first).

    `least`, of the shape of one block, is the smallest mean excess that is believed: where all
    peaks are equal, it says what is a difference at all. Raises ValueError for fewer than
    TAIL_LEAST + 1 blocks.
    """
    blocks = len(peaks)
    if blocks <= TAIL_LEAST:
        raise ValueError(f"{blocks} blocks tell no tail: wait for {TAIL_LEAST + 1}")
    k = max(TAIL_LEAST, blocks // TAIL_SHARE)
    highest = np.partition(peaks, blocks - k - 1, axis=0)[blocks - k - 1 :].astype(np.float64)
    start = highest.min(axis=0)
    mean = (highest.sum(axis=0) - start) / k - start
    return Tail(start, np.maximum(mean, least), k, k / blocks)
