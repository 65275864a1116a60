"""One gradient-boosted model for all VMs: what it learned from some holds for others.

For each target and quantile a histogram gradient boosting with pinball loss (Ke et al. 2017;
scikit-learn) on the rows of `features`. Since those have no unit and no name of a VM, a VM
that came yesterday is forecast by the same trees as all others.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import skops.io
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from controller.predict.demand.features import design, summarise
from controller.predict.demand.series import DAY_BINS, HOUR_BINS, WINDOW, Array, Panel
from controller.predict.demand.targets import QUANTILES, Target

NAME = "boosted"

#: Types that scikit-learn's model consists of and skops does not know of by itself.
_TRUSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]
#: Of the targets, in units of the scale: what is further out says that something happened, and
#: not how much.
_FARTHEST = 200.0
#: Share of training rows whose past is cut short, so that short pasts are learned too.
_CUT_SHARE = 0.15
#: Moments of the past that rows come from, by the leads that are taken of each.
_MOMENTS = {1: 400, 4: 200}
_SHORTEST = 6


@dataclass(frozen=True, slots=True)
class Training:
    """How much to learn from, and how. `rows` is about the number of rows of a fit."""

    rows: int = 160_000
    iterations: int = 120
    learning_rate: float = 0.1
    leaves: int = 31
    leaf_rows: int = 80
    columns: float = 0.5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Boosted:
    """The trees of one family of metrics, by target and in the order of QUANTILES."""

    family: str
    columns: Mapping[Target, tuple[str, ...]]
    trees: Mapping[Target, tuple[HistGradientBoostingRegressor, ...]]
    name: str = NAME

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; series without any known value are NaN."""
        return self.many(past, {target: steps})[target]

    def many(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
        """Several targets at once, which spares looking at the past several times."""
        # In parts, so that the rows of thousands of VMs need not be in memory together.
        parts = [
            self._part(past.rows(np.arange(at, min(at + 500, len(past)))), steps)
            for at in range(0, len(past), 500)
        ]
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
            told = [tree.predict(rows).reshape(made.base.shape) for tree in self.trees[target]]
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
            "trees": {str(target): list(trees) for target, trees in self.trees.items()},
        }
        return bytes(skops.io.dumps(content, compression=zipfile.ZIP_DEFLATED, compresslevel=1))


def load(data: bytes) -> Boosted:
    """A model that `dump` wrote. Raises ValueError for anything else."""
    try:
        content = skops.io.loads(data, trusted=_TRUSTED)
        return Boosted(
            content["family"],
            {Target(target): tuple(names) for target, names in content["columns"].items()},
            {Target(target): tuple(trees) for target, trees in content["trees"].items()},
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
    trees: dict[Target, tuple[HistGradientBoostingRegressor, ...]] = {}
    columns: dict[Target, tuple[str, ...]] = {}
    rng = np.random.default_rng(how.seed)
    for target in targets:
        learned = _rows(panels, target, how, rng)
        columns[target] = learned.columns
        trees[target] = tuple(_fit(learned, level, how) for level in QUANTILES)
    return Boosted(families.pop(), columns, trees)


@dataclass(frozen=True, slots=True)
class _Learned:
    """Rows [rows, columns] with the scaled value that came [rows]."""

    rows: NDArray[np.float32]
    values: Array
    columns: tuple[str, ...]


def _fit(learned: _Learned, level: float, how: Training) -> HistGradientBoostingRegressor:
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
        random_state=how.seed,
    )
    return model.fit(learned.rows, learned.values)


def _rows(
    panels: Sequence[Panel], target: Target, how: Training, rng: np.random.Generator
) -> _Learned:
    """Rows and scaled values from random moments of the past of random series."""
    span = HOUR_BINS if target is Target.FIVE_MINUTES else DAY_BINS
    bins = min(panel.bins for panel in panels)
    first = min(WINDOW, bins // 3)
    if bins < 2 * DAY_BINS:
        raise ValueError(
            f"{bins} bins of 5 minutes are too few to learn from: {2 * DAY_BINS} are needed"
        )
    each = 1 if target is Target.DAY_PEAK else 4
    most = min(_MOMENTS[each], max(1, how.rows // (16 * each)))
    moments = min(most, bins - span - first + 1)
    series = max(1, how.rows // (each * moments * len(panels)))
    parts = []
    for at in np.sort(rng.choice(np.arange(first, bins - span + 1), moments, replace=False)):
        for panel in panels:
            picked = np.arange(len(panel))
            if len(picked) > series:
                picked = np.sort(rng.choice(picked, series, replace=False))
            parts.append(_moment(panel.rows(picked), int(at), target, each, rng))
    rows = np.concatenate([part.rows for part in parts])
    values = np.concatenate([part.values for part in parts])
    if not len(rows):
        raise ValueError(f"nothing is known of {panels[0].metric}: there is nothing to learn")
    # The trees can do nothing with a column that no row knows: it becomes a constant.
    rows[:, ~np.isfinite(rows).any(axis=0)] = 0.0
    return _Learned(rows, np.clip(values, -_FARTHEST, _FARTHEST), parts[0].columns)


def _moment(
    panel: Panel,
    at: int,
    target: Target,
    each: int,
    rng: np.random.Generator,
) -> _Learned:
    """Rows of `each` leads as of bin `at`, with what came then."""
    reach = min(target.steps, (panel.bins - at) // target.bins)
    leads = np.sort(_leads(target, reach, each, rng))
    past = panel.until(at)
    if rng.random() < _CUT_SHARE:
        past = _cut(past, rng)
    made = design(summarise(past), target, leads)
    future = panel.values[:, at : at + reach * target.bins]
    actual = target.series(future)[:, leads - 1]
    values = ((actual - made.base) / made.scale[:, None]).ravel()
    some = np.repeat(np.isfinite(past.values).any(axis=1), len(leads))
    usable = np.isfinite(values) & some
    return _Learned(made.rows[usable], values[usable], made.columns)


def _leads(target: Target, reach: int, each: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Different leads; of 5 minutes most in the next hour, which is asked for most."""
    if target is not Target.FIVE_MINUTES or reach <= HOUR_BINS:
        return rng.choice(np.arange(1, reach + 1), min(each, reach), replace=False)
    near = rng.choice(np.arange(1, HOUR_BINS + 1), each - 1, replace=False)
    return np.append(near, rng.integers(HOUR_BINS + 1, reach + 1))


def _cut(past: Panel, rng: np.random.Generator) -> Panel:
    """`past` as if the VMs had come a random time ago."""
    kept = int(np.exp(rng.uniform(np.log(_SHORTEST), np.log(WINDOW))))
    values = np.where(np.arange(past.bins) < past.bins - kept, np.nan, past.values)
    return Panel(past.metric, past.names, values, past.end, past.capacity)
