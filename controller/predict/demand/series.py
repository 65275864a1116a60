"""What was measured, in the form in which models read it: many series on one grid of 5 minutes.

Whatever is wrong with samples is settled here, once: NaN, infinities and negative values are
gaps, several samples of one bin are their mean, counters become rates across their resets, and
only short gaps are filled. Models meet finite, non-negative values, or NaN for "not known".
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]

#: Seconds of a bin of the grid.
STEP = 300
HOUR_BINS = 12
DAY_BINS = 288
#: Bins of the past that models look at: two weeks, so that each weekday is seen twice.
WINDOW = 14 * DAY_BINS
#: The longest gap, in bins, over which the last value is carried: an hour.
CARRY = 12


class Metric(StrEnum):
    """What is forecast of a VM; names and units are those of `controller.model.metrics`."""

    CPU = "cpu"
    MEMORY = "memory"
    NET_RX = "net_rx"
    NET_TX = "net_tx"
    DISK_READ = "disk_read"
    DISK_WRITE = "disk_write"

    @property
    def family(self) -> str:
        """Metrics of one family are alike enough to be learned by one model."""
        return self.value.split("_")[0]

    @property
    def resolution(self) -> float:
        """What is too little to matter, in the metric's unit: errors are never measured
        against less. Of CPU it is one per cent in one of 15 samples of 20 s, of memory 1 MiB,
        of rates 100 bytes/s."""
        return {"cpu": 0.01 / 15, "memory": 2.0**20}.get(self.family, 100.0)


class History(Protocol):
    """Where series are read from; `controller.history.series.Reader` is one."""

    def read_many(
        self,
        metric: str,
        start: float,
        end: float,
        step: float,
        how: Literal["mean", "max"] = "mean",
        subjects: Collection[str] | None = None,
    ) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
        """The names of `subjects`, the times (Unix seconds) at which steps of `step` seconds
        begin in [start, end), and a row for each subject of what `metric` was in them, NaN
        where nothing is known."""
        ...


@dataclass(frozen=True, slots=True)
class Panel:
    """Series of one metric on one grid.

    `values` has a row a series and a column a bin of 5 minutes, NaN where nothing is known;
    `end` is the Unix time at which the last bin ends; `capacity` has what each VM can use at
    most, in the metric's unit, NaN where that is not known.
    """

    metric: Metric
    names: tuple[str, ...]
    values: Array
    end: int
    capacity: Array

    def __post_init__(self) -> None:
        rows = len(self.names)
        if self.values.ndim != 2 or len(self.values) != rows or len(self.capacity) != rows:
            raise ValueError(
                f"panel of {self.metric}: {rows} names, values of shape {self.values.shape} and "
                f"{len(self.capacity)} capacities do not belong together"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bins(self) -> int:
        """Columns."""
        return int(self.values.shape[1])

    def until(self, bins: int) -> Panel:
        """What was known after the first `bins` bins."""
        end = self.end - (self.bins - bins) * STEP
        return Panel(self.metric, self.names, self.values[:, :bins], end, self.capacity)

    def rows(self, chosen: Sequence[int] | NDArray[np.integer[Any]]) -> Panel:
        """Some of the series."""
        picked = np.asarray(chosen, dtype=np.intp)
        names = tuple(self.names[row] for row in picked)
        return Panel(self.metric, names, self.values[picked], self.end, self.capacity[picked])

    def window(self, bins: int = WINDOW) -> Array:
        """The last `bins` bins, NaN before the first one that there is."""
        missing = bins - self.bins
        if missing <= 0:
            return self.values[:, self.bins - bins :]
        return np.pad(self.values, ((0, 0), (missing, 0)), constant_values=np.nan)


def panel(
    metric: Metric,
    samples: Sequence[tuple[str, ArrayLike, ArrayLike]],
    end: int,
    bins: int = WINDOW,
    capacity: Sequence[float] | None = None,
) -> Panel:
    """A panel of `bins` bins up to `end` (Unix s) from (VM, times, values) of each series."""
    stop = end - end % STEP
    rows = [on_grid(times, values, stop, bins) for _, times, values in samples]
    grid = np.stack(rows) if rows else np.empty((0, bins))
    limits = np.full(len(rows), np.nan) if capacity is None else np.asarray(capacity, float)
    return Panel(metric, tuple(name for name, _, _ in samples), carried(grid), stop, limits)


def read(
    history: History,
    metric: Metric,
    vms: Sequence[str],
    end: int,
    bins: int = WINDOW,
    capacity: Sequence[float] | None = None,
) -> Panel:
    """A panel of what `history` has of `vms` in the `bins` bins up to `end` (Unix s)."""
    stop = end - end % STEP
    start = stop - bins * STEP
    names, times, values = history.read_many(metric.value, start, stop, STEP, "mean", vms)
    samples = [(name, times, row) for name, row in zip(names, values, strict=True)]
    return panel(metric, samples, stop, bins, capacity)


def on_grid(times: ArrayLike, values: ArrayLike, end: int, bins: int) -> Array:
    """Means of the usable samples of each bin of 5 minutes in the `bins` bins up to `end`."""
    when = np.asarray(times, dtype=np.float64)
    what = np.asarray(values, dtype=np.float64)
    if when.shape != what.shape:
        raise ValueError(f"{when.shape} times do not belong to {what.shape} values")
    # Larger than any machine's figure is a fault of the source, and its square would overflow.
    usable = np.isfinite(when) & np.isfinite(what) & (what >= 0) & (what < 1e18)
    when, what = when[usable], what[usable]
    columns = np.floor((when - end) / STEP) + bins
    inside = (columns >= 0) & (columns < bins)
    place = columns[inside].astype(np.intp)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=what[inside], minlength=bins)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def carried(grid: Array, limit: int = CARRY) -> Array:
    """`grid` with gaps filled by the value before them, for at most `limit` bins."""
    columns = np.arange(grid.shape[1])
    last = np.maximum.accumulate(np.where(np.isnan(grid), -1, columns), axis=1)
    known = (last >= 0) & (columns - last <= limit)
    filled = np.take_along_axis(grid, np.maximum(last, 0), axis=1)
    return np.where(known, filled, np.nan).astype(np.float32)


def rates(times: ArrayLike, counts: ArrayLike, longest: float = 2 * STEP) -> tuple[Array, Array]:
    """Times and rates per second of a counter that only grows, but for resets.

    A reset (the counter falls) and a pause of more than `longest` seconds give no rate: how
    much was counted in between is not known. A rate stands at the later of its two times.
    """
    when = np.asarray(times, dtype=np.float64)
    count = np.asarray(counts, dtype=np.float64)
    usable = np.isfinite(when) & np.isfinite(count)
    order = np.argsort(when[usable], kind="stable")
    when, count = when[usable][order], count[usable][order]
    passed, grown = np.diff(when), np.diff(count)
    good = (passed > 0) & (passed <= longest) & (grown >= 0)
    return when[1:][good], grown[good] / passed[good]


class _Silence:
    """Filters of warnings, which are the process's: set by the first thread that needs them and
    taken back by the last, since threads that did so each for itself would undo each other's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._before = warnings.catch_warnings()
            self._before.__enter__()
            for message in ("Mean of empty slice", "All-NaN", "Degrees of freedom"):
                warnings.filterwarnings("ignore", message=message)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)


_silence = _Silence()


@contextmanager
def gaps_allowed() -> Iterator[None]:
    """Let numpy take means and maxima of nothing but NaN: they are NaN, as is meant."""
    with _silence, np.errstate(invalid="ignore", divide="ignore"):
        yield
