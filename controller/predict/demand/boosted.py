"""One gradient-boosted model for all VMs: what it learned from some holds for others.

For each target and quantile a histogram gradient boosting with pinball loss (Ke et al. 2017;
scikit-learn) on the rows of `features`. Since those have no unit and no name of a VM, a VM
that came yesterday is forecast by the same trees as all others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.predict.demand.examples import Examples, examples
from controller.predict.demand.features import Design, design, summarise, together
from controller.predict.demand.parts import cached, on_all_cores
from controller.predict.demand.series import Array, Panel
from controller.predict.demand.targets import QUANTILES, Target
from controller.predict.demand.trees import Trees

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

NAME = "boosted"

#: What a file of another form is refused by.
_FORM = 1
#: Series that are told together: as many as make rows enough for the trees to be quick.
_PART = 1024
#: Models of one target and quantile, whose mean is told.
_Bag = tuple["HistGradientBoostingRegressor", ...]


@dataclass(frozen=True, slots=True)
class Training:
    """How much to learn from, and how. `rows` is about the number of rows of a fit; `columns`
    the share of columns that each split may choose from. Few trees, each of few columns, and
    two models of other rows: more trees only learned the VMs of the past by heart. Medians did
    better as one model with the rows and the trees of both."""

    rows: int = 300_000
    bags: int = 2
    iterations: int = 60
    learning_rate: float = 0.1
    leaves: int = 31
    leaf_rows: int = 80
    columns: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Boosted:
    """The trees of one family of metrics by target, whose outputs are in the order of QUANTILES,
    and the columns that they see."""

    family: str
    columns: Mapping[Target, tuple[str, ...]]
    trees: Mapping[Target, Trees]
    name: str = NAME

    def __post_init__(self) -> None:
        """Raises ValueError for trees of other columns or quantiles."""
        for target, trees in self.trees.items():
            if len(trees.base) != len(QUANTILES):
                raise ValueError(f"trees of {target} tell {len(trees.base)} quantiles")
            if trees.feature.max(initial=0) >= len(self.columns[target]):
                raise ValueError(f"trees of {target} ask for columns that there are not")

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; series without any known value are NaN."""
        return self.many(past, {target: steps})[target]

    def many(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
        """Several targets at once, which spares looking at the past several times."""
        told = on_all_cores(lambda part: self._part(part, steps), past, _PART)
        return {target: np.concatenate([part[target] for part in told]) for target in steps}

    def _part(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
        seen: dict[Target, list[Design]] = {target: [] for target in steps}
        for few in cached(past):
            summary = summarise(few)
            for target, count in steps.items():
                seen[target].append(design(summary, target, range(1, count + 1)))
        unknown = ~np.isfinite(past.window()).any(axis=1)
        out = {}
        for target in steps:
            made = together(seen.pop(target))
            if made.columns != self.columns[target]:
                raise ValueError(
                    f"the {self.family} model of {target} was trained on other columns than "
                    "this version makes: train it again"
                )
            told = self.trees[target](made.values)
            scaled = np.moveaxis(told.reshape(-1, *made.base.shape), 0, -1)
            values = made.base[..., None] + made.scale[:, None, None] * scaled
            values[unknown] = np.nan
            out[target] = values
        return out

    def dump(self) -> bytes:
        """The model as a file of arrays: loading executes nothing of it, and needs no version of
        what it was trained with."""
        about = {
            "form": _FORM,
            "family": self.family,
            "columns": {str(target): list(names) for target, names in self.columns.items()},
        }
        content: dict[str, Any] = {
            f"{target}.{name}": array
            for target, trees in self.trees.items()
            for name, array in trees.arrays().items()
        }
        content["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        file = io.BytesIO()
        np.savez_compressed(file, **content)
        return file.getvalue()


def load(data: bytes) -> Boosted:
    """A model that `dump` wrote. Raises ValueError for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as content:
            about = json.loads(content["about"].tobytes())
            if about["form"] != _FORM:
                raise ValueError(f"it has form {about['form']}, and {_FORM} is known here")
            columns = {Target(t): tuple(names) for t, names in about["columns"].items()}
            trees = {
                target: Trees.of(
                    {
                        name.removeprefix(f"{target}."): content[name]
                        for name in content.files
                        if name.startswith(f"{target}.")
                    }
                )
                for target in columns
            }
            return Boosted(about["family"], columns, trees)
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
    trees: dict[Target, Trees] = {}
    columns: dict[Target, tuple[str, ...]] = {}
    rng = np.random.default_rng(how.seed)
    for target in targets:
        learned = examples(panels, target, how.bags * how.rows, rng)
        columns[target] = learned.columns
        trees[target] = Trees.learned([_fit(learned, level, how, rng) for level in QUANTILES])
    return Boosted(families.pop(), columns, trees)


def _fit(learned: Examples, level: float, how: Training, rng: np.random.Generator) -> _Bag:
    """As many models as `how` says, each of other rows: their mean errs less than any. For the
    median one, of as many rows and trees in all."""
    # Here, because who only forecasts needs no scikit-learn.
    from sklearn.ensemble import HistGradientBoostingRegressor

    bags, each = (1, how.bags) if level == 0.5 else (how.bags, 1)
    models = []
    for _ in range(bags):
        rows, values = learned.draw(each * how.rows, rng)
        model = HistGradientBoostingRegressor(
            loss="quantile",
            quantile=level,
            max_iter=each * how.iterations,
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
