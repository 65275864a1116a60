"""Which traffic matrices were there? From the rows that edges counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from controller.decide.paths.network import Floats
from controller.model.nouns import RouteClass
from controller.store.traffic import Row

#: The order of the last axis.
CLASSES = (RouteClass.INTERACTIVE, RouteClass.BULK)


def matrices(
    rows: Iterable[Row], edges: Sequence[str], every_s: float, count: int
) -> dict[RouteClass, Floats]:
    """By class the matrices (time, edges, edges) of at most the last `count` intervals of
    `every_s` seconds, bit/s from row to column, oldest first; none where there are no rows. An
    edge of which an interval has no row is NaN there: nobody knows what it sent."""
    place = {name: index for index, name in enumerate(edges)}
    known = [row for row in rows if row.datapath in place]
    if not known:
        return {}
    slots = [round(row.at / every_s) for row in known]
    last = max(slots)
    first = max(min(slots), last - count + 1)
    found = np.full((len(CLASSES), last - first + 1, len(edges), len(edges)), np.nan)
    for slot, row in zip(slots, known, strict=True):
        if slot < first:
            continue
        source = place[row.datapath]
        found[:, slot - first, source, :] = 0.0
        for edge, rates in row.rates.items():
            if edge in place:
                for kind, rate in rates.items():
                    found[CLASSES.index(kind), slot - first, source, place[edge]] = rate
    return dict(zip(CLASSES, found, strict=True))
