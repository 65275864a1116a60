"""How are time series read? As numpy arrays, raw or on a grid, with gaps kept as gaps.

    times, values = history.read("web1", "cpu", start, end)             # the samples
    times, values = history.read("web1", "cpu", start, end, step=300)   # 5-minute means
    vms, times, values = history.read_many("cpu", start, end, step=300) # all VMs: a matrix
    matrices = history.read_all(["cpu", "memory"], start, end, 300)     # by metric
    times, values = history.read("web1", "cpu", start, end, 3600, "max")

Times are Unix seconds, UTC, as float64, ascending; values are float64 in the metric's unit
(`controller.model.metrics`). On a grid, time t stands for the samples of [t, t + step); the
grid's times are multiples of `step` (from `start` rounded down, to before `end`), and a step
without any sample is NaN. Without `step` there is a pair for each sample of [start, end) and
a gap is simply no sample; of two at the same millisecond one is told.

Where raw samples are no longer kept, means over 5 minutes or an hour stand in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from controller.history.errors import BadQuery
from controller.model.metrics import METRICS, Scope

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
#: Unix milliseconds.
Millis = npt.NDArray[np.int64]
How = Literal["mean", "max"]

#: Cells (subjects x steps) of one answer: 400 MB of values.
MAX_CELLS = 50_000_000


class Series(NamedTuple):
    """One series: `times` [n] in Unix seconds, `values` [n]."""

    times: Floats
    values: Floats


class Matrix(NamedTuple):
    """One metric of many: `values` [len(subjects), len(times)], NaN where there is no sample."""

    subjects: tuple[str, ...]
    times: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class Points:
    """Samples in wide form: row i is of `subjects[codes[i]]` at `times[i]`, and `values[i, j]`
    is that of metric j, NaN where there is none. `weights` of the same shape tells how many
    samples each value is the mean of; None where each is one."""

    subjects: Sequence[str]
    codes: Codes
    times: Millis
    values: Floats
    weights: Floats | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a source: samples of [start, end) in Unix milliseconds.

    A source may answer with means over `step` milliseconds or a divisor of it (maxima for
    `how` "max") where it has them; None asks for the samples themselves."""

    scope: Scope
    metrics: tuple[str, ...]
    start: int
    end: int
    subjects: frozenset[str] | None = None
    step: int | None = None
    how: How = "mean"


#: What answers a query: in pieces, the earlier written first.
Scan = Callable[[Query], Iterable[Points]]


class Reader:
    """Reads what `scan` finds. Every method may be called from any thread, and raises
    HistoryError: BadQuery for what cannot be asked, others where the engine fails."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan

    def read(
        self,
        subject: str,
        metric: str,
        start: float,
        end: float,
        step: float | None = None,
        how: How = "mean",
    ) -> Series:
        """One metric of one VM (host, port). Nothing known of it is an empty series, or a
        grid of NaN."""
        return self.read_metrics(subject, (metric,), start, end, step, how)[metric]

    def read_metrics(
        self,
        subject: str,
        metrics: Sequence[str],
        start: float,
        end: float,
        step: float | None = None,
        how: How = "mean",
    ) -> dict[str, Series]:
        """Several metrics of one VM, which is quicker than one after the other. With `step`,
        all have the same times."""
        query = _query(metrics, start, end, step, how, (subject,))
        if query.step is None:
            return _samples(self._scan(query), query)
        grid = _Grid(query, (subject,))
        for points in self._scan(query):
            grid.add(points)
        return {
            name: Series(grid.times, grid.values(column)[0])
            for column, name in enumerate(query.metrics)
        }

    def read_many(
        self,
        metric: str,
        start: float,
        end: float,
        step: float,
        how: How = "mean",
        subjects: Collection[str] | None = None,
    ) -> Matrix:
        """One metric of `subjects` in their order, or of all that have samples, by name."""
        return self.read_all((metric,), start, end, step, how, subjects)[metric]

    def read_all(
        self,
        metrics: Sequence[str],
        start: float,
        end: float,
        step: float,
        how: How = "mean",
        subjects: Collection[str] | None = None,
    ) -> dict[str, Matrix]:
        """Several metrics of `subjects` in their order, or of all that have samples of any of
        them, by name: all on the same subjects and times. Quicker than one after the other."""
        query = _query(metrics, start, end, step, how, subjects)
        grid = _Grid(query, tuple(subjects) if subjects is not None else ())
        for points in self._scan(query):
            grid.add(points)
        names, rows = tuple(subjects or ()), list(range(len(subjects or ())))
        if subjects is None:
            names = tuple(sorted(grid.rows))
            rows = [grid.rows[name] for name in names]
        return {
            name: Matrix(names, grid.times, grid.values(column)[rows])
            for column, name in enumerate(query.metrics)
        }


def in_memory(scope: Scope, metrics: Sequence[str], points: Sequence[Points]) -> Reader:
    """A reader of `points`, whose columns are `metrics`: for tests and for replays."""

    def scan(query: Query) -> Iterator[Points]:
        if query.scope is scope:
            for piece in points:
                found = select(piece, metrics, query)
                if found is not None:
                    yield found

    return Reader(scan)


def select(points: Points, metrics: Sequence[str], query: Query) -> Points | None:
    """The part of `points`, whose columns are `metrics`, that `query` asks for."""
    if query.subjects is not None and query.subjects.isdisjoint(points.subjects):
        return None
    if not any(name in metrics for name in query.metrics):
        return None
    keep = (points.times >= query.start) & (points.times < query.end)
    if query.subjects is not None:
        asked = [code for code, name in enumerate(points.subjects) if name in query.subjects]
        keep &= points.codes == asked[0] if len(asked) == 1 else np.isin(points.codes, asked)
    at = np.flatnonzero(keep)
    if not len(at):
        return None
    values = np.full((len(at), len(query.metrics)), np.nan)
    weights = None if points.weights is None else np.zeros_like(values)
    for column, name in enumerate(query.metrics):
        if name in metrics:
            values[:, column] = points.values[at, metrics.index(name)]
            if weights is not None and points.weights is not None:
                weights[:, column] = points.weights[at, metrics.index(name)]
    return Points(points.subjects, points.codes[at], points.times[at], values, weights)


def _query(
    metrics: Sequence[str],
    start: float,
    end: float,
    step: float | None,
    how: How,
    subjects: Collection[str] | None,
) -> Query:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise BadQuery(f"there is no metric {unknown[0] if unknown else ''}", "see METRICS")
    scopes = {METRICS[name].scope for name in metrics}
    if len(scopes) > 1:
        raise BadQuery(
            f"{', '.join(metrics)} are not all about the same kind of thing", "ask one by one"
        )
    if how not in ("mean", "max"):
        raise BadQuery(f"there is no statistic {how}", "ask for mean or max")
    if not -1e11 < start <= end < 1e11:
        raise BadQuery(f"{start} to {end} is no span of time", "give Unix seconds, start first")
    first, last = round(start * 1000), round(end * 1000)
    asked = None if subjects is None else frozenset(subjects)
    scope = scopes.pop()
    if step is None:
        return Query(scope, tuple(metrics), first, last, asked, None, how)
    if not 0.001 <= step < 1e9:
        raise BadQuery(f"a step of {step} s is not possible", "give seconds, 0.001 or more")
    width = round(step * 1000)
    first, last = first // width * width, -(-last // width) * width
    return Query(scope, tuple(metrics), first, last, asked, width, how)


def _samples(pieces: Iterable[Points], query: Query) -> dict[str, Series]:
    """The samples of one subject, sorted, one of each time."""
    found = list(pieces)
    if not found:
        none = np.empty(0)
        return dict.fromkeys(query.metrics, Series(none, none))
    times = np.concatenate([piece.times for piece in found])
    values = np.concatenate([piece.values for piece in found])
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    out = {}
    for column, name in enumerate(query.metrics):
        there = np.flatnonzero(~np.isnan(values[:, column]))
        at = times[there]
        if len(at):
            there = there[np.append(at[1:] != at[:-1], True)]
        out[name] = Series(times[there] / 1000, values[there, column])
    return out


class _Grid:
    """Gathers points into cells of (subject, step)."""

    def __init__(self, query: Query, subjects: Sequence[str]) -> None:
        assert query.step is not None
        self._query = query
        self._step = query.step
        self._width = (query.end - query.start) // self._step
        self.rows = {name: row for row, name in enumerate(subjects)}
        self._check(max(1, len(self.rows)) * len(query.metrics))
        height = len(self.rows)
        empty = -np.inf if query.how == "max" else 0.0
        self._empty = empty
        self._sums = [np.full((height, self._width), empty) for _ in query.metrics]
        self._counts = [np.zeros((height, self._width)) for _ in query.metrics]

    @property
    def times(self) -> Floats:
        """Where each step begins, in Unix seconds."""
        return (self._query.start + self._step * np.arange(self._width)) / 1000

    def add(self, points: Points) -> None:
        """Take `points` in; those of subjects not met before get a row."""
        if not len(points.times):
            return
        rows = self._rows_of(points)
        cells = rows * self._width + (points.times - self._query.start) // self._step
        for column in range(len(self._query.metrics)):
            values = points.values[:, column]
            there = ~np.isnan(values)
            at, values = cells[there], values[there]
            sums = self._sums[column].reshape(-1)
            if self._query.how == "max":
                np.maximum.at(sums, at, values)
                continue
            weights = 1.0 if points.weights is None else points.weights[there, column]
            np.add.at(sums, at, values * weights)
            np.add.at(self._counts[column].reshape(-1), at, weights)

    def values(self, column: int) -> Floats:
        """[subjects, steps]: the mean or maximum of each cell, NaN where there is none."""
        sums = self._sums[column]
        if self._query.how == "max":
            sums[np.isneginf(sums)] = np.nan
            return sums
        with np.errstate(invalid="ignore"):
            sums /= self._counts[column]
        return sums

    def _rows_of(self, points: Points) -> Millis:
        """The row of each point."""
        used = np.unique(points.codes)
        table = np.zeros(int(used[-1]) + 1, np.int64)
        for code in used.tolist():
            table[code] = self.rows.setdefault(points.subjects[code], len(self.rows))
        missing = len(self.rows) - len(self._sums[0])
        if missing > 0:
            self._grow(missing)
        return table[points.codes]

    def _grow(self, missing: int) -> None:
        self._check(len(self.rows) * len(self._query.metrics))
        more = np.full((missing, self._width), self._empty)
        none = np.zeros((missing, self._width))
        self._sums = [np.concatenate([sums, more]) for sums in self._sums]
        self._counts = [np.concatenate([counts, none]) for counts in self._counts]

    def _check(self, rows: int) -> None:
        if rows * self._width > MAX_CELLS:
            raise BadQuery(
                f"{rows} series of {self._width} steps are more than {MAX_CELLS} values",
                "ask for fewer subjects, a shorter span or a longer step",
            )
