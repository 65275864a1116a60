"""How good did forecasts turn out? What was told is kept until it can be compared with what came.

SQLite. A forecast of all VMs by one model is a row of `told` until it is settled; then it is a
row of `score` for each VM, model and day, which say how good it was and by which models are
chosen. What it missed by is handed back, for the calibration.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.predict.demand.conformal import Misses, misses
from controller.predict.demand.selection import HALF_LIFE, Scores, loss
from controller.predict.demand.series import STEP, Array, Metric, Panel, gaps_allowed
from controller.predict.demand.targets import QUANTILES, Target

_SCHEMA = """
CREATE TABLE IF NOT EXISTS told (
    metric TEXT, target TEXT, model TEXT, origin INTEGER, names TEXT, steps INTEGER,
    quantiles BLOB, scale BLOB, PRIMARY KEY (metric, target, model, origin)
);
CREATE TABLE IF NOT EXISTS score (
    vm TEXT, metric TEXT, target TEXT, model TEXT, day INTEGER,
    forecasts INTEGER, loss REAL, error REAL, steps INTEGER, below95 INTEGER,
    PRIMARY KEY (metric, target, vm, model, day)
) WITHOUT ROWID;
"""
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Told:
    """What `model` told of all `names` at `origin` (Unix s): quantiles [series, steps, levels],
    as they were before the calibration, and the scale [series] that losses are measured by."""

    metric: Metric
    target: Target
    model: str
    origin: int
    names: tuple[str, ...]
    quantiles: Array
    scale: Array


@dataclass(frozen=True, slots=True)
class Quality:
    """How forecasts of one VM by one model turned out: `loss` is the mean pinball loss and
    `error` the mean absolute error of the median, both in units of the seasonal naive error;
    `below95` the share of steps that stayed below the .95 quantile."""

    model: str
    forecasts: int
    loss: float
    error: float
    below95: float


class Ledger:
    """The record of forecasts in the SQLite file `path`. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """End; everything is on the disk before."""
        self._database.close()

    def remember(self, told: Sequence[Told]) -> None:
        """Keep what was told until it is settled."""
        rows = [
            (
                t.metric.value,
                t.target.value,
                t.model,
                t.origin,
                json.dumps(t.names),
                t.quantiles.shape[1],
                t.quantiles.astype("<f4").tobytes(),
                t.scale.astype("<f4").tobytes(),
            )
            for t in told
        ]
        with self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    def enter(self, outcomes: Sequence[tuple[Told, Array]]) -> None:
        """Keep the scores of forecasts with what came [series, steps]."""
        with self._database:
            for told, actual in outcomes:
                self._enter(told, actual)

    def settle(self, known: Panel) -> list[tuple[Told, Misses]]:
        """Compare with `known` whatever was told of its metric and is over by its end, keep the
        scores, and return it with what it missed by. What is older than the panel is dropped."""
        settled = []
        with self._database:
            for told in self._due(known):
                actual = _actual(known, told)
                if actual is not None:
                    self._enter(told, actual)
                    settled.append((told, misses(actual, told.quantiles, told.scale)))
                self._database.execute(
                    "DELETE FROM told WHERE metric = ? AND target = ? AND model = ? AND origin = ?",
                    (told.metric.value, told.target.value, told.model, told.origin),
                )
        return settled

    def scores(
        self,
        metric: Metric,
        target: Target,
        models: tuple[str, ...],
        names: Sequence[str],
        now: int,
    ) -> Scores:
        """What models are chosen by, for each of `names`, discounted as of `now` (Unix s)."""
        place = {name: at for at, name in enumerate(names)}
        row = {model: at for at, model in enumerate(models)}
        out = Scores.none(models, len(names))
        found = self._database.execute(
            "SELECT vm, model, day, forecasts, loss FROM score"
            " WHERE metric = ? AND target = ? AND day <= ?",
            (metric.value, target.value, now // _DAY),
        )
        for vm, model, day, forecasts, total in found:
            if vm in place and model in row:
                weight = 0.5 ** (max(0.0, now / _DAY - day - 1) / HALF_LIFE)
                out.sums[row[model], place[vm]] += weight * total
                out.counts[row[model], place[vm]] += weight * forecasts
        return out

    def quality(self, vm: str, metric: Metric, target: Target, since: int) -> tuple[Quality, ...]:
        """How forecasts of `vm` made since `since` (Unix s) turned out, the best model first."""
        found = self._database.execute(
            "SELECT model, sum(forecasts), sum(loss), sum(error), sum(steps), sum(below95)"
            " FROM score WHERE vm = ? AND metric = ? AND target = ? AND day >= ? GROUP BY model",
            (vm, metric.value, target.value, since // _DAY),
        )
        rows = [
            Quality(model, count, total / count, error / count, below / max(steps, 1))
            for model, count, total, error, steps, below in found
        ]
        return tuple(sorted(rows, key=lambda quality: quality.loss))

    def knows(self, metric: Metric, model: str) -> bool:
        """Whether any forecast of `metric` by `model` was settled."""
        found = self._database.execute(
            "SELECT 1 FROM score WHERE metric = ? AND model = ? LIMIT 1", (metric.value, model)
        )
        return found.fetchone() is not None

    def forget(self, before: int) -> None:
        """Drop scores of days before `before` (Unix s)."""
        self._database.execute("DELETE FROM score WHERE day < ?", (before // _DAY,))

    def _due(self, known: Panel) -> list[Told]:
        found = self._database.execute(
            "SELECT target, model, origin, names, steps, quantiles, scale FROM told"
            " WHERE metric = ?",
            (known.metric.value,),
        ).fetchall()
        out = []
        for target, model, origin, names, steps, quantiles, scale in found:
            if origin + steps * Target(target).seconds > known.end:
                continue
            told = tuple(json.loads(names))
            shape = (len(told), steps, len(QUANTILES))
            values = np.frombuffer(quantiles, "<f4").reshape(shape).astype(np.float64)
            units = np.frombuffer(scale, "<f4").astype(np.float64)
            out.append(Told(known.metric, Target(target), model, origin, told, values, units))
        return out

    def _enter(self, told: Told, actual: Array) -> None:
        losses = loss(actual, told.quantiles, told.scale)
        with gaps_allowed():
            error = np.nanmean(np.abs(actual - told.quantiles[..., 0]), axis=1) / told.scale
        known = np.isfinite(actual) & np.isfinite(told.quantiles[..., 0])
        below = known & (actual <= told.quantiles[..., QUANTILES.index(0.95)])
        rows = [
            (name, told.metric.value, told.target.value, told.model, told.origin // _DAY, *figures)
            for name, *figures in zip(
                told.names,
                losses.tolist(),
                error.tolist(),
                known.sum(axis=1).tolist(),
                below.sum(axis=1).tolist(),
                strict=True,
            )
            if np.isfinite(figures[0])
        ]
        self._database.executemany(
            "INSERT INTO score VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " forecasts = forecasts + 1, loss = loss + excluded.loss,"
            " error = error + excluded.error, steps = steps + excluded.steps,"
            " below95 = below95 + excluded.below95",
            rows,
        )


def _actual(known: Panel, told: Told) -> Array | None:
    """[series, steps] of what came; None where `known` no longer has it."""
    steps = told.quantiles.shape[1]
    first = known.bins - (known.end - told.origin) // STEP
    if first < 0:
        return None
    place = {name: at for at, name in enumerate(known.names)}
    rows = [place.get(name, -1) for name in told.names]
    values = known.values[:, first : first + steps * told.target.bins]
    nothing = np.full((1, values.shape[1]), np.nan, dtype=values.dtype)
    picked = np.concatenate([values, nothing])[rows]
    return told.target.series(picked)
