"""Which traffic matrices were there? From the rows that edges counted, with VMs that have moved
since taken for where they are now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from controller.decide.paths.network import Floats
from controller.decide.paths.traffic import moved
from controller.loops.paths.moves import Move
from controller.model.nouns import RouteClass
from controller.store.traffic import Row

#: The order of the last axis.
CLASSES = (RouteClass.INTERACTIVE, RouteClass.BULK)


def matrices(
    rows: Iterable[Row], edges: Sequence[str], every_s: float, count: int
) -> tuple[dict[RouteClass, Floats], Floats]:
    """By class the matrices (time, edges, edges) of at most the last `count` intervals of
    `every_s` seconds, bit/s from row to column, oldest first, and when the intervals ended (time,),
    Unix seconds; no classes where there are no rows. An edge of which an interval has no row is
    NaN there: nobody knows what it sent."""
    place = {name: index for index, name in enumerate(edges)}
    known = [row for row in rows if row.datapath in place]
    if not known:
        return {}, np.zeros(0)
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
    ends = np.arange(first, last + 1, dtype=np.float64) * every_s
    return dict(zip(CLASSES, found, strict=True)), ends


def as_if_moved(
    past: Mapping[RouteClass, Floats],
    ends: Floats,
    edges: Sequence[str],
    moves: Iterable[Move],
    rates: Mapping[str, tuple[float, float]],
) -> dict[RouteClass, Floats]:
    """`past` (time, edges, edges) with each VM's traffic at its new edge in the intervals that
    ended (`ends`, Unix seconds) before it moved. What it exchanges is spread over others as all
    of its edge's traffic is: so much as `rates` say (bit/s sent and received, by VM), else its
    share."""
    result = {kind: matrices.copy() for kind, matrices in past.items()}
    place = {name: index for index, name in enumerate(edges)}
    whole = {kind: np.nan_to_num(matrices).mean(axis=0) for kind, matrices in past.items()}
    total = np.sum(list(whole.values()), axis=0)
    for move in moves:
        if move.source not in place or move.target not in place:
            continue
        source, target = place[move.source], place[move.target]
        before = ends <= move.at
        for kind, mean in whole.items():
            sent, received = mean[source], mean[:, source]
            if move.vm in rates:
                out, into = rates[move.vm]
                sent = sent * min(1.0, out / max(float(total[source].sum()), 1.0))
                received = received * min(1.0, into / max(float(total[:, source].sum()), 1.0))
            else:
                sent, received = sent * move.share, received * move.share
            matrices = result[kind]
            matrices[before] = moved(matrices[before], sent, received, source, target)
    return result
