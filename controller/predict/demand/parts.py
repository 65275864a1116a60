"""Many series are looked at in parts: on all cores, and each part in a processor's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

from threadpoolctl import threadpool_limits

from controller.predict.demand.series import Panel, gaps_allowed

_Given = TypeVar("_Given")
_Told = TypeVar("_Told")
#: Series that a processor's cache holds two weeks of, with what is made of them.
CACHED = 128


def pieces(panel: Panel, parts: int) -> Iterator[Panel]:
    """`panel` in so many parts of about the same number of series, in order."""
    ends = [len(panel) * part // parts for part in range(parts + 1)]
    for first, last in pairwise(ends):
        values, capacity = panel.values[first:last], panel.capacity[first:last]
        yield Panel(panel.metric, panel.names[first:last], values, panel.end, capacity)


def cached(panel: Panel) -> Iterator[Panel]:
    """`panel` in parts of at most CACHED series, at least one."""
    return pieces(panel, max(1, -(-len(panel) // CACHED)))


def on_all_cores(work: Callable[[Panel], _Told], panel: Panel, most: int) -> list[_Told]:
    """What `work`, which must be such that numpy gives up the interpreter's lock, makes of parts
    of `panel` of at most `most` series; few series are not worth the threads."""
    threads = cores()
    if threads == 1 or len(panel) <= 2 * CACHED:
        return [work(part) for part in pieces(panel, max(1, -(-len(panel) // most)))]
    # As many parts as make all threads end at once.
    parts = threads * -(-len(panel) // (threads * most))
    return side_by_side(work, pieces(panel, parts))


def side_by_side(work: Callable[[_Given], _Told], given: Iterable[_Given]) -> list[_Told]:
    """What `work` makes of each of what is given, in order, on all cores. Linear algebra, which
    would have threads of its own, has none meanwhile."""
    # Filters of warnings are set once here, and not by each thread in turn.
    with gaps_allowed(), threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(work, given))


def cores() -> int:
    """Threads that computations may use: OMP_NUM_THREADS, else as many as there are cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))
