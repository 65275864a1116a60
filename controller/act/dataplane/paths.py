"""Shortest paths through the fabric, as trees: towards each edge a few trees, numbered, each
giving every switch exactly one next hop. A label names (edge, tree), so a packet's whole way
is chosen once, at its ingress, and a core switch needs one rule a label.

Where a switch has several equal next hops, tree p takes the one that p's digits name: the
hops at each distance use a digit of their own, so that on a fat-tree of k pods the (k/2)^2
trees use all cores, and no two the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controller.act.dataplane.pipeline import MAX_PATHS

#: Neighbour's dpid to the local port that leads there, for each dpid.
Adjacency = Mapping[str, Mapping[str, int]]


@dataclass(slots=True)
class Routes:
    """What `compute` found. Keys are dpids."""

    #: (switch, edge) to output ports, one for each tree in order; missing where no way leads.
    ports: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    #: switch to the (edge, tree, output port) that it must carry for others.
    carried: dict[str, set[tuple[str, int, int]]] = field(default_factory=dict)

    def trees(self, edge: str, switch: str) -> tuple[int, ...]:
        """Output ports of `switch` towards `edge`, by tree; empty where there is no way."""
        return self.ports.get((switch, edge), ())


def _distances(adjacency: Adjacency, target: str) -> dict[str, int]:
    distance = {target: 0}
    frontier = [target]
    while frontier:
        following = []
        for switch in frontier:
            for neighbour in adjacency.get(switch, {}):
                if neighbour not in distance:
                    distance[neighbour] = distance[switch] + 1
                    following.append(neighbour)
        frontier = following
    return distance


def _next_hops(adjacency: Adjacency, target: str) -> tuple[dict[str, list[str]], dict[str, int]]:
    distance = _distances(adjacency, target)
    hops = {
        switch: sorted(n for n in adjacency.get(switch, {}) if distance.get(n) == d - 1)
        for switch, d in distance.items()
        if d
    }
    return hops, distance


def _tree_count(hops: Mapping[str, list[str]], distance: Mapping[str, int]) -> dict[int, int]:
    """Place value of the digit that each distance uses, farthest first; key 0 holds the
    number of trees."""
    width: dict[int, int] = {}
    for switch, choices in hops.items():
        d = distance[switch]
        width[d] = max(width.get(d, 1), len(choices))
    values: dict[int, int] = {}
    value = 1
    for d in sorted(width, reverse=True):
        values[d] = value
        value *= width[d]
    values[0] = min(value, MAX_PATHS)
    return values


def compute(adjacency: Adjacency, edges: Iterable[str]) -> Routes:
    """Trees towards every one of `edges`. `adjacency` must be symmetric."""
    routes = Routes()
    edges = sorted(edges)
    for edge in edges:
        hops, distance = _next_hops(adjacency, edge)
        values = _tree_count(hops, distance)
        chosen = {
            switch: [
                choices[tree // values[distance[switch]] % len(choices)]
                for tree in range(values[0])
            ]
            for switch, choices in hops.items()
        }
        for switch, names in chosen.items():
            routes.ports[switch, edge] = tuple(adjacency[switch][name] for name in names)
        _carry(routes, adjacency, chosen, edge, (e for e in edges if e in chosen))
    return routes


def _carry(
    routes: Routes,
    adjacency: Adjacency,
    chosen: Mapping[str, list[str]],
    edge: str,
    ingresses: Iterable[str],
) -> None:
    """Note at which switches each tree is used, walking it from every ingress."""
    for ingress in ingresses:
        for tree, first in enumerate(chosen[ingress]):
            switch = first
            while switch != edge:
                hop = chosen[switch][tree]
                entry = (edge, tree, adjacency[switch][hop])
                carried = routes.carried.setdefault(switch, set())
                if entry in carried:
                    break
                carried.add(entry)
                switch = hop
