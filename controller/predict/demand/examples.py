"""What there is to learn from: moments of the past, what was known then, and what came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.features import design, summarise, usual_scale
from controller.predict.demand.parts import side_by_side
from controller.predict.demand.series import DAY_BINS, HOUR_BINS, WINDOW, Array, Panel
from controller.predict.demand.targets import Target

#: Least past, in bins, that anything can be learned from.
LEAST = 2 * DAY_BINS
#: Of the targets, in units of the scale: what is further out says that something happened, and
#: not how much.
_FARTHEST = 200.0
#: Share of moments whose past is cut short, so that short pasts are learned too, and the
#: least that is left of them, in bins.
_CUT_SHARE = 0.15
_SHORTEST = 6
#: Leads that are taken of each moment and series, and moments at most: twice as many were worth
#: more than more or other trees.
_LEADS = 4
_MOMENTS = 600
#: What an example may count, least and most.
_WEIGHTS = (0.1, 10.0)


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of features [examples, columns], the first `levels` of which are values that the
    series had; the scaled value that came of each, and how much it counts: errors are judged by
    the scale of all the past, and not by that of its window."""

    rows: NDArray[np.float32]
    values: Array
    weights: Array
    columns: tuple[str, ...]
    levels: int

    def draw(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], Array]:
        """`count` rows and values, each drawn by what it counts (weights would make the binning
        of the trees slow)."""
        share = self.weights / self.weights.sum()
        at = np.sort(rng.choice(len(self.rows), min(count, len(self.rows)), p=share))
        return self.rows[at], self.values[at]


def examples(
    panels: Sequence[Panel], target: Target, count: int, rng: np.random.Generator
) -> Examples:
    """About `count` examples of random moments and series of `panels`. Raises ValueError where
    they hold less than LEAST bins, or nothing that is known."""
    bins = min(panel.bins for panel in panels)
    if bins < LEAST:
        raise ValueError(f"{bins} bins of 5 minutes are too few to learn from: {LEAST} are needed")
    span = HOUR_BINS if target is Target.FIVE_MINUTES else DAY_BINS
    first = min(WINDOW, bins // 3)
    each = 1 if target is Target.DAY_PEAK else _LEADS
    most = min(_MOMENTS, max(1, count // (16 * each)))
    moments = min(most, bins - span - first + 1)
    series = max(1, count // (each * moments * len(panels)))
    usual = [usual_scale(panel, target) for panel in panels]
    chosen = np.sort(rng.choice(np.arange(first, bins - span + 1), moments, replace=False))

    def of(place: tuple[int, np.random.Generator]) -> list[Examples]:
        at, own = place
        made = []
        for panel, scale in zip(panels, usual, strict=True):
            picked = np.arange(len(panel))
            if len(picked) > series:
                picked = np.sort(own.choice(picked, series, replace=False))
            made.append(_moment(panel.rows(picked), scale[picked], at, target, each, own))
        return made

    places = zip(chosen.tolist(), rng.spawn(len(chosen)), strict=True)
    parts = [part for made in side_by_side(of, places) for part in made]
    rows = np.concatenate([part.rows for part in parts])
    if not len(rows):
        raise ValueError(f"nothing is known of {panels[0].metric}: there is nothing to learn")
    # The trees can do nothing with a column that no row knows: it becomes a constant.
    rows[:, ~np.isfinite(rows).any(axis=0)] = 0.0
    values = np.concatenate([part.values for part in parts])
    weights = np.concatenate([part.weights for part in parts])
    clipped = np.clip(values, -_FARTHEST, _FARTHEST)
    return Examples(rows, clipped, np.clip(weights, *_WEIGHTS), parts[0].columns, parts[0].levels)


def _moment(
    panel: Panel, usual: Array, at: int, target: Target, each: int, rng: np.random.Generator
) -> Examples:
    """Examples of `each` leads as of bin `at`, with what came then."""
    reach = min(target.steps, (panel.bins - at) // target.bins)
    leads = np.sort(_leads(target, reach, each, rng))
    past = panel.until(at)
    if rng.random() < _CUT_SHARE:
        past = _cut(past, rng)
    made = design(summarise(past), target, leads)
    future = panel.values[:, at : at + reach * target.bins]
    actual = target.series(future)[:, leads - 1]
    values = ((actual - made.base) / made.scale[:, None]).ravel()
    weights = np.repeat(made.scale / usual, len(leads))
    some = np.repeat(np.isfinite(past.values).any(axis=1), len(leads))
    usable = np.isfinite(values) & some
    return Examples(made.rows[usable], values[usable], weights[usable], made.columns, made.levels)


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
