"""Paths that were chosen for the traffic, and how much each takes.

Each way of a route is laid as part of a tree with a number of its own towards the egress, and
protected by the same detours as the planned ones. Core switches have one rule for each (edge,
tree) that passes them; weights are known at the ingress alone, as equal buckets.

What is laid depends on routes and links, not on which links work. What works says which ways
an ingress uses: buckets of a way that is broken take others of the route, and a route without
a whole way is left to the planned trees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from controller.act.dataplane.pipeline import DETOURS, WEIGHTED
from controller.act.dataplane.trees import Hop, Place, Plan, Step, Tree, Ways, carry
from controller.model.nouns import Route, RouteClass, Way

#: What a route is for: its egress and its class.
Aim = tuple[str, RouteClass]


class Lane(NamedTuple):
    """A way as an ingress uses it: the tree, how it begins, which buckets lead there, and for
    each of its steps the places that it may go out of."""

    tree: int
    hop: Hop
    buckets: tuple[int, ...]
    places: tuple[tuple[Place, ...], ...]


@dataclass(frozen=True, slots=True)
class Laid:
    """What routes ask of the switches."""

    #: The lanes of each ingress, by what they are for.
    lanes: dict[str, dict[Aim, tuple[Lane, ...]]] = field(default_factory=dict)
    #: Switch to what it carries for others: (edge, tree) to how.
    carried: dict[str, dict[tuple[str, int], Hop]] = field(default_factory=dict)
    #: Switch to the hops with a choice that it may come to use.
    hops: dict[str, set[Hop]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Weighted:
    """What is laid, and what each ingress uses of it now."""

    laid: Laid = field(default_factory=Laid)
    #: Ingress to a tree, and how it begins, for each bucket, by what they are for.
    used: dict[str, dict[Aim, tuple[tuple[int, Hop], ...]]] = field(default_factory=dict)

    def buckets(
        self, switch: str, edge: str, traffic_class: RouteClass
    ) -> tuple[tuple[int, Hop], ...]:
        """What `switch` uses towards `edge`, a bucket each; empty where nothing is chosen, or
        nothing of it works."""
        return self.used.get(switch, {}).get((edge, traffic_class), ())

    def differ(self, other: Weighted, switch: str) -> bool:
        """Whether `switch` does something else there."""
        mine, theirs = self.laid, other.laid
        return self.used.get(switch) != other.used.get(switch) or (
            mine is not theirs
            and (
                mine.carried.get(switch) != theirs.carried.get(switch)
                or mine.hops.get(switch) != theirs.hops.get(switch)
            )
        )


def lay(plan: Plan, routes: Iterable[Route]) -> Laid:
    """What `routes` ask of the switches of `plan`. A way over a link that is not there, or
    against another of the same tree, is left out: so whatever the routes say, every tree leads
    to its edge."""
    laid = Laid()
    towards: dict[str, list[Route]] = {}
    for route in sorted(routes, key=lambda route: route.key):
        if route.ingress in plan.edges and route.egress in plan.edges:
            towards.setdefault(route.egress, []).append(route)
    for edge, some in towards.items():
        _lay_towards(plan, edge, some, laid)
    for ingress, aims in laid.lanes.items():
        begun = {lane.hop for lanes in aims.values() for lane in lanes}
        laid.hops.setdefault(ingress, set()).update(hop for hop in begun if hop.protected)
    for switch, carried in laid.carried.items():
        laid.hops.setdefault(switch, set()).update(h for h in carried.values() if h.protected)
    return laid


def weigh(laid: Laid, down: Collection[Place]) -> Weighted:
    """What each ingress uses of `laid` while the links out of the places `down` do not work."""
    down = frozenset(down)
    weighted = Weighted(laid)
    for ingress, aims in laid.lanes.items():
        for aim, lanes in aims.items():
            buckets = _working(lanes, down)
            if buckets:
                weighted.used.setdefault(ingress, {})[aim] = buckets
    return weighted


def _lay_towards(plan: Plan, edge: str, routes: list[Route], laid: Laid) -> None:
    planned = plan.trees[edge]
    detours = {number: planned[number] for number in DETOURS}
    ways = Ways(edge, (detours[DETOURS[0]], detours[DETOURS[1]]))
    trees: dict[int, Tree] = {}
    for route in routes:
        lanes = []
        for way in route.ways:
            tree = trees.setdefault(way.tree, {})
            if not _fits(plan, way, tree):
                continue
            for switch, to in pairwise(way.nodes):
                if switch not in tree:
                    tree[switch] = Step(to, _hop(plan, ways, switch, to, way.tree))
            carry(laid.carried, {**detours, way.tree: tree}, edge, way.tree, route.ingress)
            places = tuple(
                tuple((switch, port) for port in tree[switch].hop.ports)
                for switch in way.nodes[:-1]
            )
            lanes.append(Lane(way.tree, tree[route.ingress].hop, way.buckets, places))
        if lanes:
            aims = laid.lanes.setdefault(route.ingress, {})
            aims[edge, route.traffic_class] = tuple(lanes)


def _fits(plan: Plan, way: Way, tree: Tree) -> bool:
    """Whether a way leads over links that are there, comes by no switch twice, and goes on
    everywhere as others of its tree do."""
    return (
        way.tree in WEIGHTED
        and len(set(way.nodes)) == len(way.nodes)
        and all(
            to in plan.adjacency.get(switch, {}) and (switch not in tree or tree[switch].to == to)
            for switch, to in pairwise(way.nodes)
        )
    )


def _hop(plan: Plan, ways: Ways, switch: str, to: str, tree: int) -> Hop:
    """How `switch` gets to its neighbour: trees begin at different ones of parallel links."""
    ports = plan.adjacency[switch][to]
    first = tree % len(ports)
    return ways.around(switch, to, (*ports[first:], *ports[:first]), DETOURS)


def _working(lanes: tuple[Lane, ...], down: frozenset[Place]) -> tuple[tuple[int, Hop], ...]:
    """A tree and its first hop for each bucket of a route. Those that stand keep their
    buckets, so that a failure moves no connection but those that it has hit."""
    whole = [
        lane
        for lane in lanes
        if not down or all(any(place not in down for place in step) for step in lane.places)
    ]
    held = sorted((bucket, (lane.tree, lane.hop)) for lane in whole for bucket in lane.buckets)
    if not held:
        return ()
    living = dict(held)
    count = 1 + max(bucket for lane in lanes for bucket in lane.buckets)
    standing = [choice for _, choice in held]
    return tuple(living.get(b, standing[b % len(standing)]) for b in range(count))
