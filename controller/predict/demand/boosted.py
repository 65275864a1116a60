"""Boosted trees: for each quantile a histogram gradient boosting with pinball loss (Ke et al.
2017; scikit-learn)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controller.predict.demand.examples import Examples
from controller.predict.demand.targets import QUANTILES
from controller.predict.demand.trees import Trees

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor


@dataclass(frozen=True, slots=True)
class Growth:
    """How trees grow. `rows` is the number of examples of a fit at most; `columns` the share of
    columns that each split may choose from: more trees, or of more columns each, only learned
    the VMs of the past by heart."""

    rows: int = 300_000
    iterations: int = 60
    learning_rate: float = 0.1
    leaves: int = 31
    leaf_rows: int = 80
    columns: float = 0.2


def grow(shown: Examples, how: Growth, rng: np.random.Generator) -> Trees:
    """Trees for each of QUANTILES, each of other rows of what is shown."""
    return Trees.learned([(_fit(shown, level, how, rng),) for level in QUANTILES])


def _fit(
    shown: Examples, level: float, how: Growth, rng: np.random.Generator
) -> HistGradientBoostingRegressor:
    # Here, because who only forecasts needs no scikit-learn.
    from sklearn.ensemble import HistGradientBoostingRegressor

    rows, values = shown.draw(how.rows, rng)
    model = HistGradientBoostingRegressor(
        loss="quantile",
        quantile=level,
        max_iter=how.iterations,
        learning_rate=how.learning_rate,
        max_leaf_nodes=how.leaves,
        min_samples_leaf=how.leaf_rows,
        max_features=how.columns,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=int(rng.integers(2**31)),
    )
    return model.fit(rows, values)
