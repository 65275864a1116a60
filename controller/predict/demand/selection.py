"""Which model forecasts a VM: the one whose recent forecasts of it were best.

Losses are pinball losses over all quantiles in units of the series' scale, remembered with a
half-life, so that a choice follows a VM that changes. The model for all VMs is preferred: to
be chosen instead, another has to be better by a margin, which is wider the less is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.series import Array, gaps_allowed
from controller.predict.demand.targets import pinball

#: Days after which a loss counts half.
HALF_LIFE = 4.0
#: By how much another model has to be better than the preferred one, as a share; and how much more
#: after a single forecast: losses scatter about as much as they are large, so that the mean of n
#: of them is known to its share of 1 / sqrt(n).
MARGIN = 0.1
DOUBT = 1.0
#: Settled forecasts, discounted, that a model must have before it can be chosen.
EVIDENCE = 3.0


@dataclass(frozen=True, slots=True)
class Scores:
    """Discounted sums of losses [models, series], and of how many they are."""

    models: tuple[str, ...]
    sums: Array
    counts: Array

    @classmethod
    def none(cls, models: tuple[str, ...], series: int) -> Scores:
        """Before any forecast is settled."""
        shape = (len(models), series)
        return cls(models, np.zeros(shape), np.zeros(shape))

    def after(self, losses: Array, days: float) -> Scores:
        """With `losses` [models, series] (NaN where none was settled), `days` later."""
        kept = 0.5 ** (days / HALF_LIFE)
        told = np.isfinite(losses)
        return Scores(
            self.models,
            self.sums * kept + np.where(told, losses, 0.0),
            self.counts * kept + told,
        )

    @property
    def means(self) -> Array:
        """[models, series]; NaN where nothing was settled."""
        with gaps_allowed():
            return np.asarray(self.sums / np.where(self.counts > 0, self.counts, np.nan))

    def choose(self, preferred: str, possible: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
        """The index of a model for each series, of those that are `possible` [models, series]
        (by default all)."""
        first = self.models.index(preferred)
        means = np.where(self.counts >= EVIDENCE, self.means, np.inf)
        share = 1 - MARGIN - DOUBT / np.sqrt(np.maximum(self.counts[first], EVIDENCE))
        bar = means[first] * share
        if possible is not None:
            means = np.where(possible, means, np.inf)
            bar = np.where(possible[first], bar, np.inf)
        best = np.argmin(means, axis=0)
        better = means[best, np.arange(means.shape[1])] < bar
        choice = np.where(better, best, first)
        if possible is None:
            return choice
        # Where the preferred one says nothing and none has a record, the first that speaks.
        speaks = possible[choice, np.arange(len(choice))]
        return np.where(speaks, choice, np.argmax(possible, axis=0))


def loss(actual: Array, quantiles: Array, scale: Array) -> Array:
    """Mean scaled pinball loss [series] of `quantiles` [series, steps, levels]; NaN where
    nothing became known or nothing was said."""
    with gaps_allowed():
        each = pinball(actual, quantiles) / scale[:, None, None]
        return np.asarray(np.nanmean(each, axis=(1, 2)))
