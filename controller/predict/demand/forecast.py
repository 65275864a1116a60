"""A forecast as it is told: quantiles that hold what a quantile promises, and why it is so."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from controller.predict.demand.series import Array, Metric
from controller.predict.demand.targets import QUANTILES, Target


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a forecast is as it is: `model`, the losses that it was chosen by, the past that it
    saw, and what else changed it."""

    model: str
    #: Bins of 5 minutes that were known, and when the first and the last of them began (Unix s).
    known: int
    first: int | None
    last: int | None
    #: Mean pinball loss of each candidate over its recent forecasts, in units of the seasonal
    #: naive error; empty where nothing was scored yet.
    losses: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """Quantiles [steps, len(QUANTILES)] of one target of one VM, in the metric's unit.

    Step n covers origin + n * target.seconds up to a step later. They are finite, not
    negative, and grow with the level. `above_capacity` says which steps may need more than the
    VM has; these are not cut, since what is wanted is what a decision has to know.
    """

    vm: str
    metric: Metric
    target: Target
    origin: int
    quantiles: Array
    capacity: float | None
    reason: Reason

    @property
    def times(self) -> tuple[int, ...]:
        """When each step begins, Unix seconds."""
        return tuple(
            self.origin + step * self.target.seconds for step in range(len(self.quantiles))
        )

    @property
    def above_capacity(self) -> tuple[bool, ...]:
        """For each step, whether its highest quantile is above the capacity."""
        if self.capacity is None:
            return (False,) * len(self.quantiles)
        return tuple(bool(top > self.capacity) for top in self.quantiles[:, -1])

    def level(self, quantile: float) -> Array:
        """One quantile of all steps. Raises ValueError for one that is not in QUANTILES."""
        return np.asarray(self.quantiles[:, QUANTILES.index(quantile)])


def sane(quantiles: Array, fallback: Array) -> Array:
    """`quantiles` [series, steps, levels] as quantiles have to be: finite, not negative, and
    not crossing (sorted, which lowers no pinball loss's quality: Chernozhukov, Fernandez-Val
    and Galichon 2010). What is not finite becomes `fallback` [series].
    """
    spare = np.where(np.isfinite(fallback), np.maximum(fallback, 0.0), 0.0)
    usable = np.where(np.isfinite(quantiles), quantiles, spare[:, None, None])
    return np.asarray(np.sort(np.maximum(usable, 0.0), axis=-1))
