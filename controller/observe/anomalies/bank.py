"""Does a metric leave its own pattern? A bank of streams, judged from their past only.

Each sample is looked at in several views (`VIEWS`), both ways: against the last hours, over a few
samples, as a level against the last day, in how much it moves. Each view's score is held
against the tail of its own past scores (`tail`); the bound is where a series without anomalies
would be reported `Rule.per_week` times a week, all views together. What was once seen lifts the
bound, so that what comes each day is reported for a few days and then no more.

All series of a bank are advanced together, as arrays; the work a sample does not grow with time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from controller.observe.anomalies.tail import Array, tail

Rows = NDArray[np.intp]


class View(StrEnum):
    """How a sample is looked at. The order is that of the scores."""

    SPIKE = "spike"
    BURST = "burst"
    LEVEL = "level"
    SPREAD = "spread"
    SHARP = "sharp"


VIEWS = tuple(View)


@dataclass(frozen=True, slots=True)
class Rule:
    """How it is judged. Lengths are in samples, made for one each `cadence_s` (5 min, what most
    metric systems keep for weeks): near are 3 h, a burst 30 min, a window 1 h, the base a day, a
    block 1 h, the past that is remembered two weeks."""

    cadence_s: float = 300.0
    #: Reports of one series a week that are nothing, where all is as it always was.
    per_week: float = 2.0
    near: int = 36
    burst: int = 6
    window: int = 12
    #: Windows of the base.
    base: int = 24
    block: int = 12
    #: Blocks that are remembered, and that it takes to judge.
    remembered: int = 336
    learning: int = 8
    #: So long nothing may have been out of the ordinary before the next report.
    quiet: int = 72

    @property
    def chance(self) -> float:
        """Of a report by one view in one direction in a block."""
        blocks_a_week = 7 * 86_400.0 / (self.block * self.cadence_s)
        return self.per_week / blocks_a_week / (2 * len(VIEWS))


@dataclass(frozen=True, slots=True)
class Finding:
    """Series number `series` left its pattern at `at` (Unix seconds).

    `value` is what was seen in the view and `expected` what its past says, in the metric's unit
    (for SPREAD: mean absolute change from sample to sample). `score` is the view's score over
    its bound, and so more than 1.
    """

    series: int
    at: float
    view: View
    upward: bool
    value: float
    expected: float
    score: float


class Bank:
    """The streams of `size` series, and what is remembered of each.

    `least` (a number, or one for each series; in the metric's unit) is the smallest difference
    that can matter.
    """

    def __init__(self, size: int, rule: Rule | None = None, least: ArrayLike = 0.0) -> None:
        self.rule = rule = rule or Rule()
        self._least = np.broadcast_to(np.asarray(least, np.float64), (size,)).copy()
        scores = 2 * len(VIEWS)
        self._at = np.full(size, -np.inf)
        self._seen = np.zeros(size, np.intp)
        self._since = np.zeros(size, np.intp)
        self._last = np.zeros(size)
        self._near = np.zeros((size, rule.near))
        self._off = np.zeros((size, rule.near))
        self._base = np.zeros((size, rule.base))
        self._base_move = np.zeros((size, rule.base))
        self._move = np.zeros((size, rule.window))
        self._peak = np.full((size, scores), -np.inf)
        self._peaks = np.zeros((rule.remembered, size, scores), np.float32)
        self._bound = np.full((size, scores), np.inf)
        self._loud = np.full(size, _NEVER, np.intp)

    def clear(self, rows: Rows, least: ArrayLike) -> None:
        """Forget what is known of `rows`, which are new series from now on, of which differences
        from `least` on can matter."""
        self._least[rows] = least
        self._at[rows] = -np.inf
        for array in (self._seen, self._since, self._last, self._near, self._off, self._base):
            array[rows] = 0
        self._base_move[rows] = self._move[rows] = 0.0
        self._peak[rows], self._bound[rows] = -np.inf, np.inf
        self._loud[rows] = _NEVER  # of the peaks, none is read before it is written

    def set_least(self, rows: Rows, least: ArrayLike) -> None:
        """From now on only differences from `least` on can matter in `rows`."""
        self._least[rows] = least

    def state(self, size: int) -> dict[str, NDArray[Any]]:
        """All that is remembered of the first `size` series, by name."""
        blocks = min(self.rule.remembered, int(self._seen[:size].max(initial=0)) // self.rule.block)
        told = {name: getattr(self, f"_{name}")[:size] for name in _STATE}
        return {**told, "peaks": self._peaks[:blocks, :size]}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` told, of a bank of the same rule. Raises ValueError where it is
        of another, or damaged."""
        try:
            size = len(state["at"])
            for name in _STATE:
                getattr(self, f"_{name}")[:size] = state[name]
            self._peaks[: len(state["peaks"]), :size] = state["peaks"]
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"this is no state of a bank of {self.rule}: {error}") from error

    def step(self, at: ArrayLike, values: ArrayLike) -> list[Finding]:
        """Take one sample of each series, and tell which leave their pattern.

        `at` is in Unix seconds, one for all or one each; `values` (size,) are in the metrics'
        units. What is no finite number, and what is not newer than the series' last sample,
        is passed over. Raises ValueError for another shape.
        """
        values = np.asarray(values, np.float64)
        if values.shape != self._at.shape:
            raise ValueError(f"{values.shape} values for a bank of {self._at.size}: give one each")
        at = np.broadcast_to(np.asarray(at, np.float64), values.shape)
        rows = np.flatnonzero(
            np.isfinite(values) & (np.abs(values) < _BEYOND) & np.isfinite(at) & (at > self._at)
        )
        if not rows.size:
            return []
        x, when = values[rows], at[rows]
        self._begin(rows, x, when)
        scores, seen, expected = self._look(rows, x)
        # With less than a window behind it, a sample can be compared with nothing.
        scores[self._seen[rows] - self._since[rows] < self.rule.window] = 0.0
        found = self._judge(rows, when, scores, seen, expected)
        self._remember(rows, x, when, scores)
        return found

    def _begin(self, rows: Rows, x: Array, at: Array) -> None:
        """Start series anew that are new, or of which nothing was heard for as long as `near`
        reaches: where they went meanwhile is unknown, and no jump."""
        new = at - self._at[rows] > self.rule.near * self.rule.cadence_s
        first = rows[new]
        self._near[first] = self._base[first] = x[new, None]
        self._last[first] = x[new]
        self._since[first] = self._seen[first]

    def _look(self, rows: Rows, x: Array) -> tuple[Array, Array, Array]:
        """Scores (rows, views), and what was seen and expected."""
        rule, seen = self.rule, self._seen[rows]
        around = np.median(self._near[rows], axis=1)
        off = x - around
        usual_off = np.median(self._off[rows], axis=1)
        self._off[rows, seen % rule.near] = np.abs(off)
        self._near[rows, seen % rule.near] = x
        self._move[rows, seen % rule.window] = np.abs(x - self._last[rows])
        lately = (seen[:, None] - np.arange(rule.window)) % rule.near
        recent = self._near[rows[:, None], lately]
        burst = recent[:, : rule.burst].mean(axis=1)
        level = np.median(recent, axis=1)
        base = np.median(self._base[rows], axis=1)
        move = self._move[rows].mean(axis=1)
        base_move = self._base_move[rows].mean(axis=1)
        grain = np.maximum(self._least[rows], 1e-3 * np.abs(base)) + _TINY
        self._keep_base(rows, level, move)
        scores = np.stack(
            (
                off,
                burst - base,
                level - base,
                np.log((move + grain) / (base_move + grain)),
                off / (usual_off + 0.02 * np.abs(around) + grain),
            ),
            axis=1,
        )
        return (
            scores,
            np.stack((x, burst, level, move, x), axis=1),
            np.stack((around, base, base, base_move, around), axis=1),
        )

    def _keep_base(self, rows: Rows, level: Array, move: Array) -> None:
        rule, seen = self.rule, self._seen[rows]
        ends = (seen + 1) % rule.window == 0
        place = (seen[ends] // rule.window) % rule.base
        self._base[rows[ends], place] = level[ends]
        self._base_move[rows[ends], place] = move[ends]
        first = seen + 1 - self._since[rows] == rule.window
        self._base[rows[first]] = level[first, None]
        self._base_move[rows[first]] = move[first, None]

    def _judge(
        self, rows: Rows, at: Array, scores: Array, seen: Array, expected: Array
    ) -> list[Finding]:
        both = np.concatenate((scores, -scores), axis=1)
        over = both > self._bound[rows]
        loud = np.flatnonzero(over.any(axis=1))
        found = []
        for i in loud:
            row = rows[i]
            if self._seen[row] - self._loud[row] > self.rule.quiet:
                share = np.where(over[i], both[i] / self._bound[row], 0.0)
                best = int(np.argmax(share))
                view = best % len(VIEWS)
                found.append(
                    Finding(
                        int(row),
                        float(at[i]),
                        VIEWS[view],
                        best < len(VIEWS),
                        float(seen[i, view]),
                        float(expected[i, view]),
                        float(share[best]),
                    )
                )
        self._loud[rows[loud]] = self._seen[rows[loud]]
        return found

    def _remember(self, rows: Rows, x: Array, at: Array, scores: Array) -> None:
        rule = self.rule
        self._peak[rows] = np.maximum(self._peak[rows], np.concatenate((scores, -scores), axis=1))
        self._last[rows] = x
        self._at[rows] = at
        self._seen[rows] += 1
        ends = rows[self._seen[rows] % rule.block == 0]
        if not ends.size:
            return
        blocks = self._seen[ends] // rule.block - 1  # in the first, nothing is to compare with
        self._peak[ends[blocks <= 0]] = -np.inf
        ends, blocks = ends[blocks > 0], blocks[blocks > 0]
        self._peaks[(blocks - 1) % rule.remembered, ends] = self._peak[ends]
        self._peak[ends] = -np.inf
        held = np.minimum(blocks, rule.remembered)
        for many in np.unique(held[held >= rule.learning]):
            self._fit(ends[held == many], int(many))

    def _fit(self, rows: Rows, blocks: int) -> None:
        base = np.abs(np.median(self._base[rows], axis=1))
        noise = self._base_move[rows].mean(axis=1)
        unit = (
            np.maximum(np.maximum(self._least[rows], _FLOOR_LEVEL * base), _FLOOR * noise) + _TINY
        )
        zero = np.zeros_like(unit)
        least = np.stack((unit, unit, unit, zero + _FLOOR_SPREAD, zero + _FLOOR_SHARP), axis=1)
        tails = tail(self._peaks[:blocks, rows], np.tile(least, 2))
        self._bound[rows] = tails.bound(self.rule.chance)


#: The number of a sample that never was.
_NEVER = -(1 << 40)
#: What is remembered of each series, the first axis being that of series.
_STATE = (
    "least", "at", "seen", "since", "last", "near", "off", "base", "base_move", "move", "peak",
    "bound", "loud",
)  # fmt: skip
#: No metric has such values, and squares of smaller ones are finite.
_BEYOND = 1e100
#: What counts as no difference at all, of whatever unit; keeps ratios defined.
_TINY = 1e-9
#: The mean excess of a tail is believed to be no smaller than this share of the mean absolute
#: change from sample to sample, this share of the level, this much in the logarithm of SPREAD,
#: and so many usual distances in SHARP.
_FLOOR, _FLOOR_LEVEL, _FLOOR_SPREAD, _FLOOR_SHARP = 0.1, 0.01, 0.1, 0.5
