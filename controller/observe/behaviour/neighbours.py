"""Which behaviours are alike, across VMs and across time? Pure.

Vectors are scaled by the median and the quartiles of all of them, so that no feature counts more
for its unit and no odd VM makes all others alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Array = NDArray[np.float64]

#: Scaled features are cut here: beyond, different is different.
_FARTHEST = 5.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A behaviour and its distance (scaled units, root of the mean square over features)."""

    key: tuple[str, ...]
    distance: float


def nearest(
    keys: list[tuple[str, ...]], vectors: Array, asked: Array, most: int = 5
) -> list[list[Neighbour]]:
    """For each row of `asked` the nearest of `vectors`, the nearest first.

    `vectors` is (behaviours, features), `keys` names its rows: a VM and a day, say; `asked` is
    (questions, features). Raises ValueError where the shapes do not fit.
    """
    if len(keys) != len(vectors):
        raise ValueError(f"{len(keys)} keys for {len(vectors)} vectors: give one for each")
    if not keys or not len(asked):
        return [[] for _ in asked]
    middle, width = spread(vectors)
    index = NearestNeighbors(n_neighbors=min(most, len(keys)))
    index.fit(scaled(vectors, middle, width))
    distances, places = index.kneighbors(scaled(asked, middle, width))
    root = np.sqrt(vectors.shape[1])
    return [
        [Neighbour(keys[place], float(far / root)) for far, place in zip(row, where, strict=True)]
        for row, where in zip(distances, places, strict=True)
    ]


def spread(vectors: Array) -> tuple[Array, Array]:
    """The median of each feature, and the half of the distance of its quartiles (1 where most
    are equal). What is not finite is left out; (features,) both."""
    clean = np.where(np.isfinite(vectors), vectors, np.nan)
    known = np.isfinite(clean).any(axis=0)
    clean[:, ~known] = 0.0
    low, middle, high = np.nanpercentile(clean, (25, 50, 75), axis=0)
    width = (high - low) / 2
    return middle, np.where(width > 1e-9 * (1.0 + np.abs(middle)), width, 1.0)


def scaled(vectors: Array, middle: Array, width: Array) -> Array:
    """Vectors in units of the spread, cut at what is far; unknown features stand in the middle."""
    clean = np.where(np.isfinite(vectors), vectors, middle)
    return np.asarray(np.clip((clean - middle) / width, -_FARTHEST, _FARTHEST))
