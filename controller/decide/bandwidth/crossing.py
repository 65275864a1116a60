"""Which links of the fabric does what the VMs of an edge send pass, and how much of it? Pure.

Traffic is split as it was measured lately between edges, and each pair's as its route's buckets
are; over the shortest ways, evenly at each switch, where it has none: that is what the planned
trees do. Only sending counts: a meter at the receiver's edge would protect no link on the way.

A meter cannot tell places apart. So a link holds back only VMs of which enough goes to where it
leads; what others send over it is taken off before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from controller.decide.paths.fabric import Fabric, fabric_of, known_speeds
from controller.model.nouns import Route, RouteClass, route_key
from controller.model.state import State
from controller.store.traffic import Row

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Links by name, and the share of an edge's traffic on each.
Shares = tuple[tuple[str, float], ...]

#: A link holds back VMs of an edge where at least this share of what that sends goes to edges
#: that it leads to: of each bit/s that is saved there, no more than three others are lost.
REACHED = 0.25
#: Shares below this are rounding errors, or of no use.
_NOTHING = 1e-4


@dataclass(frozen=True, slots=True)
class Crossing:
    """`capacity` (bit/s) by link. By edge what of its sending is on each link: those in `bound`
    hold its VMs back, those in `beside` do not; and the bit/s that it was measured to send."""

    capacity: Mapping[str, float] = field(default_factory=dict)
    bound: Mapping[str, Shares] = field(default_factory=dict)
    beside: Mapping[str, Shares] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    def left(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """bit/s of each link for those whom it holds back, while edges want to send `wanted`, or
        what they were measured to where nobody says: what the others leave, or at least the part
        that is due by what all want."""
        sent = {**self.measured, **wanted}
        mine, others = _sums(self.bound, sent), _sums(self.beside, sent)
        found = {}
        for name, capacity in self.capacity.items():
            here, there = mine.get(name, 0.0), others.get(name, 0.0)
            due = here / (here + there) if here > 0 else 0.0
            found[name] = max(capacity - there, due * capacity, _NOTHING * capacity)
        return found


NOWHERE = Crossing()


def crossing(state: State, rows: Iterable[Row], now: float) -> Crossing:
    """What crosses the links whose capacity somebody tells, by the measured `rows`. An edge of
    which nothing was measured, and pairs without a way, cross none."""
    fabric = fabric_of(state, 1.0, now)
    speeds = known_speeds(state, now)
    told = [number for number, k in enumerate(fabric.links) if (k.source, k.target) in speeds]
    if not told:
        return NOWHERE
    tables = _Tables.of(fabric)
    shares, sent = _measured(rows, fabric.edges)
    load, reach = tables.even(sum(shares.values()) - tables.routed(shares, state.routes))
    for kind, share in shares.items():
        tables.follow(state.routes, kind, share, load, reach)
    links = [fabric.links[number] for number in told]
    capacity = np.array([speeds[link.source, link.target] for link in links])
    kept = _unlike(load[:, told] / capacity)
    names = [f"link {links[n].source}->{links[n].target}" for n in kept]
    load, holds = load[:, told][:, kept], reach[:, told][:, kept] >= REACHED
    some = load >= _NOTHING
    return Crossing(
        dict(zip(names, capacity[kept].tolist(), strict=True)),
        _by_edge(fabric.edges, names, load, some & holds),
        _by_edge(fabric.edges, names, load, some & ~holds),
        dict(zip(fabric.edges, sent.tolist(), strict=True)),
    )


@dataclass(frozen=True)
class _Tables:
    """A fabric as arrays: links follow its order, edges theirs."""

    fabric: Fabric
    index: Mapping[str, int]
    joint: Mapping[tuple[str, str], int]
    source: Ints
    target: Ints

    @classmethod
    def of(cls, fabric: Fabric) -> _Tables:
        index = {name: number for number, name in enumerate(fabric.nodes)}
        return cls(
            fabric,
            index,
            {(k.source, k.target): number for number, k in enumerate(fabric.links)},
            np.array([index[k.source] for k in fabric.links], dtype=np.int64),
            np.array([index[k.target] for k in fabric.links], dtype=np.int64),
        )

    def routed(self, shares: Mapping[RouteClass, Floats], routes: Mapping[str, Route]) -> Floats:
        """(edges, edges): the part of all that has a route with a way that works."""
        found = np.zeros((len(self.fabric.edges),) * 2)
        for kind, share in shares.items():
            for a, b in np.argwhere(share > 0).tolist():
                if self._ways(routes, self.fabric.edges[a], self.fabric.edges[b], kind):
                    found[a, b] += share[a, b]
        return found

    def follow(
        self,
        routes: Mapping[str, Route],
        kind: RouteClass,
        share: Floats,
        load: Floats,
        reach: Floats,
    ) -> None:
        """Add to `load` and `reach` (edges, links) what routes of a class carry of `share`."""
        for a, b in np.argwhere(share > 0).tolist():
            ways = self._ways(routes, self.fabric.edges[a], self.fabric.edges[b], kind)
            total = sum(buckets for _, buckets in ways)
            for links, buckets in ways:
                load[a, links] += share[a, b] * buckets / total
            passed = list({link for links, _ in ways for link in links})
            reach[a, passed] += share[a, b]

    def _ways(
        self, routes: Mapping[str, Route], ingress: str, egress: str, kind: RouteClass
    ) -> list[tuple[list[int], int]]:
        """The links and the number of buckets of each way that works; what has no route of its
        class goes with the bulk."""
        for of in dict.fromkeys((kind, RouteClass.BULK)):
            route = routes.get(route_key(ingress, egress, of))
            found = []
            for way in route.ways if route else ():
                hops = list(pairwise(way.nodes))
                if all(hop in self.joint for hop in hops):
                    found.append(([self.joint[hop] for hop in hops], len(way.buckets)))
            if found:
                return found
        return []

    def even(self, share: Floats) -> tuple[Floats, Floats]:
        """(edges, links) twice: how much of what each edge sends is on a link, and goes to where
        that leads, when `share` (edges, edges) goes by shortest ways, evenly at each switch."""
        places = np.array([self.index[name] for name in self.fabric.edges], dtype=np.int64)
        load = np.zeros((len(places), len(self.source)))
        reach = np.zeros_like(load)
        for number in np.flatnonzero((share > 0).any(axis=0)).tolist():
            part = self._towards(int(places[number]), places)
            load += share[:, number, None] * part
            reach += share[:, number, None] * (part > 0)
        return load, reach

    def _towards(self, end: int, places: Ints) -> Floats:
        """(edges, links): how much of what each edge sends to the node `end` is on a link."""
        distance = self._distances(end)
        nearer = distance[self.target] == distance[self.source] - 1
        choices = np.bincount(self.source[nearer], minlength=len(distance))
        passing = np.zeros((len(places), len(distance)))
        passing[np.arange(len(places)), places] = 1.0
        part = np.zeros((len(places), len(self.source)))
        for far in range(int(distance[np.isfinite(distance)].max()), 0, -1):
            links = np.flatnonzero(nearer & (distance[self.source] == far))
            part[:, links] = passing[:, self.source[links]] / choices[self.source[links]]
            np.add.at(passing.T, self.target[links], part[:, links].T)
        return part

    def _distances(self, end: int) -> Floats:
        """(nodes,): hops to `end`; inf where no way leads."""
        distance = np.full(len(self.fabric.nodes), np.inf)
        distance[end] = 0.0
        for hops in range(len(distance)):
            near = self.source[distance[self.target] == hops]
            near = near[np.isinf(distance[near])]
            if not len(near):
                break
            distance[near] = hops + 1
        return distance


def _measured(
    rows: Iterable[Row], edges: tuple[str, ...]
) -> tuple[dict[RouteClass, Floats], Floats]:
    """(edges, edges) by class: the share of all that the row's edge sent, that was of this class
    and went to the column's; and (edges,): the bit/s that it sent on average."""
    place = {name: number for number, name in enumerate(edges)}
    found = {kind: np.zeros((len(edges), len(edges))) for kind in RouteClass}
    count = np.zeros(len(edges))
    for row in rows:
        if row.datapath not in place:
            continue
        here = place[row.datapath]
        count[here] += 1
        for egress, rates in row.rates.items():
            for kind, bps in rates.items() if egress != row.datapath else ():
                if egress in place and 0.0 < bps < np.inf:
                    found[kind][here, place[egress]] += bps
    total = np.sum(list(found.values()), axis=(0, 2))
    whole = np.where(total > 0, total, 1.0)[:, None]
    return {kind: bps / whole for kind, bps in found.items()}, total / np.maximum(count, 1.0)


def _unlike(level: Floats) -> list[int]:
    """Links of which each fills at other loads (`level` (edges, links) is load a bit/s) than those
    before it; as many are filled alike in a regular fabric, one of them tells for all."""
    seen: dict[bytes, int] = {}
    largest = max(float(level.max(initial=0.0)), 1e-300)
    rounded = np.round(level / largest, 7).T.copy()
    for number in np.flatnonzero(rounded.any(axis=1)).tolist():
        seen.setdefault(rounded[number].tobytes(), number)
    return list(seen.values())


def _by_edge(
    edges: tuple[str, ...], names: list[str], load: Floats, chosen: npt.NDArray[np.bool_]
) -> dict[str, Shares]:
    return {
        edge: tuple(
            (names[link], min(1.0, float(load[row, link])))
            for link in np.flatnonzero(chosen[row]).tolist()
        )
        for row, edge in enumerate(edges)
    }


def _sums(shares: Mapping[str, Shares], sent: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for edge, some in shares.items():
        bps = sent.get(edge, 0.0)
        # What cannot be is refused elsewhere, by the name of the VM.
        for name, share in some if 0 < bps < np.inf else ():
            total[name] = total.get(name, 0.0) + share * bps
    return total
