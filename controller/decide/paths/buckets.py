"""How are weights written into a group? As equal buckets, some repeated.

Open vSwitch splits by a hash over named fields only evenly over buckets, so a weight becomes a
number of equal buckets.
"""

from __future__ import annotations

import numpy as np

from controller.decide.paths.network import Floats, Ints

#: Buckets of one group: weights are kept to 1/64 at the worst, half of one bucket.
BUCKETS = 32


def to_buckets(pair: Ints, weights: Floats, count: int = BUCKETS) -> Ints:
    """Buckets of each path (paths,): for each pair, whose weights sum to 1, `count` in all, by
    largest remainder (Hamilton's method), so none is off by a whole bucket. Of equal remainders
    the first path's is taken. ValueError where `count` is below 1."""
    if count < 1:
        raise ValueError(f"a group of {count} buckets forwards nothing: give at least 1")
    exact = weights * count
    buckets = np.floor(exact + 1e-9).astype(np.int64)
    order = np.lexsort((np.arange(len(pair)), -(exact - buckets), pair))
    starts = np.ones(len(pair), dtype=bool)
    starts[1:] = np.diff(pair[order]) != 0
    place = np.arange(len(pair))
    rank = place - np.maximum.accumulate(np.where(starts, place, 0))
    given = np.zeros(int(pair.max(initial=-1)) + 1, dtype=np.int64)
    np.add.at(given, pair, buckets)
    buckets[order] += rank < (count - given)[pair[order]]
    return buckets
