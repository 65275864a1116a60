"""One gradient-boosted model for all VMs: what it learned from some holds for others.

For each target and quantile a histogram gradient boosting with pinball loss (Ke et al. 2017;
scikit-learn) on the rows of `features`. Since those have no unit and no name of a VM, a VM
that came yesterday is forecast by the same trees as all others.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import skops.io
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from controller.predict.demand.examples import Examples, examples
from controller.predict.demand.features import design, summarise
from controller.predict.demand.series import Array, Panel
from controller.predict.demand.targets import QUANTILES, Target

NAME = "boosted"

#: Types that scikit-learn's model consists of and skops does not know of by itself.
_TRUSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]
#: Series that are told together.
_PART = 128
#: Models of one target and quantile, whose mean is told.
_Bag = tuple[HistGradientBoostingRegressor, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """How much to learn from, and how. `rows` is about the number of rows of a fit; `columns`
    the share of columns that each split may choose from. Few trees, each of few columns, and
    two models of other rows: more trees only learned the VMs of the past by heart."""

    rows: int = 200_000
    bags: int = 2
    iterations: int = 60
    learning_rate: float = 0.1
    leaves: int = 31
    leaf_rows: int = 80
    columns: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Boosted:
    """The trees of one family of metrics, by target and in the order of QUANTILES."""

    family: str
    columns: Mapping[Target, tuple[str, ...]]
    trees: Mapping[Target, tuple[_Bag, ...]]
    name: str = NAME

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; series without any known value are NaN."""
        return self.many(past, {target: steps})[target]

    def many(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
        """Several targets at once, which spares looking at the past several times."""
        # In parts whose rows a processor's cache holds: each tree goes through all of them.
        panels = [
            past.rows(np.arange(at, min(at + _PART, len(past))))
            for at in range(0, len(past), _PART)
        ]
        if len(panels) < 2:
            parts = [self._part(panel, steps) for panel in panels]
        else:
            with ThreadPoolExecutor(_threads(), initializer=_alone) as pool:
                parts = list(pool.map(self._part, panels, repeat(steps)))
        empty = {t: np.empty((0, n, len(QUANTILES))) for t, n in steps.items()}
        return {
            target: np.concatenate([empty[target], *(part[target] for part in parts)])
            for target in steps
        }

    def _part(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
        summary = summarise(past)
        unknown = ~np.isfinite(summary.window).any(axis=1)
        out = {}
        for target, count in steps.items():
            made = design(summary, target, range(1, count + 1))
            if made.columns != self.columns[target]:
                raise ValueError(
                    f"the {self.family} model of {target} was trained on other columns than "
                    "this version makes: train it again"
                )
            rows = made.rows.astype(np.float64)
            told = [
                np.mean([model.predict(rows) for model in bag], axis=0).reshape(made.base.shape)
                for bag in self.trees[target]
            ]
            scaled = np.stack(told, axis=-1)
            values = made.base[..., None] + made.scale[:, None, None] * scaled
            values[unknown] = np.nan
            out[target] = values
        return out

    def dump(self) -> bytes:
        """The model as a file that loading executes nothing of."""
        content = {
            "family": self.family,
            "columns": {str(target): list(names) for target, names in self.columns.items()},
            "trees": {str(t): [list(bag) for bag in bags] for t, bags in self.trees.items()},
        }
        return bytes(skops.io.dumps(content, compression=zipfile.ZIP_DEFLATED, compresslevel=1))


def _threads() -> int:
    """As many as scikit-learn would use."""
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))


def _alone() -> None:
    """Have scikit-learn begin no threads of its own in one of ours."""
    threadpool_limits(1, "openmp")


def load(data: bytes) -> Boosted:
    """A model that `dump` wrote. Raises ValueError for anything else."""
    try:
        content = skops.io.loads(data, trusted=_TRUSTED)
        return Boosted(
            content["family"],
            {Target(target): tuple(names) for target, names in content["columns"].items()},
            {Target(t): tuple(tuple(bag) for bag in bags) for t, bags in content["trees"].items()},
        )
    # A damaged or foreign file may fail in any place of the reading.
    except Exception as error:
        raise ValueError(f"is no model of demand that can be read: {error}") from error


def train(
    panels: Sequence[Panel],
    targets: Sequence[Target] = tuple(Target),
    training: Training | None = None,
) -> Boosted:
    """Learn from all of `panels`, which are of one family. Raises ValueError where they hold
    less than two days, or nothing that is known."""
    how = training or Training()
    families = {panel.metric.family for panel in panels}
    if len(families) != 1:
        raise ValueError(f"metrics of one family are learned together, not {sorted(families)}")
    trees: dict[Target, tuple[_Bag, ...]] = {}
    columns: dict[Target, tuple[str, ...]] = {}
    rng = np.random.default_rng(how.seed)
    for target in targets:
        learned = examples(panels, target, how.bags * how.rows, rng)
        columns[target] = learned.columns
        trees[target] = tuple(_fit(learned, level, how, rng) for level in QUANTILES)
    return Boosted(families.pop(), columns, trees)


def _fit(learned: Examples, level: float, how: Training, rng: np.random.Generator) -> _Bag:
    """As many models as `how` says, each of other rows: their mean errs less than any."""
    models = []
    for _ in range(how.bags):
        rows, values = learned.draw(how.rows, rng)
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
        models.append(model.fit(rows, values))
    return tuple(models)
