"""Ways through the fabric: trees towards each edge, which a label names.

A *plan* depends on which links there are, not on which of them work now, so that a link that
fails or comes back changes nothing in the core:

- Towards each edge there are planned trees, numbered, each giving every switch one next hop.
  Where a switch has several that are equally near, tree p takes the one that p's digits name:
  the hops at each distance use a digit of their own, so that on a fat-tree of k pods the
  (k/2)^2 trees use all cores, and no two the same way. Parallel links count as different hops.
- Two detours, independent of each other (`detours.py`). A switch that has lost its next hop
  puts the packet on the one that avoids the neighbour, or at least the link; a packet on the
  first may go over to the second, and from there nowhere: so nothing ever goes in circles,
  however many links fail.

`choose` says what each ingress uses of it now: the planned trees that are whole from there on.
Where none is, but a way exists, a *repair* tree is laid over the links that work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from controller.act.dataplane.detours import independent_trees
from controller.act.dataplane.pipeline import DETOURS, FAILOVER_SLOTS, PLANNED, REPAIRS

#: Local ports that lead to a neighbour (its dpid), for each dpid.
Adjacency = Mapping[str, Mapping[str, tuple[int, ...]]]
#: A switch and one of its ports.
Place = tuple[str, int]


class Hop(NamedTuple):
    """How a switch sends on what is on a tree: by the first of `ports` that lives, which all
    lead to one neighbour; else, put on the tree `detour`, by the first of `around`."""

    ports: tuple[int, ...]
    detour: int | None = None
    around: tuple[int, ...] = ()

    @property
    def protected(self) -> bool:
        """Whether there is a choice."""
        return len(self.ports) > 1 or bool(self.around)


class _Step(NamedTuple):
    """A tree at one switch: the neighbour, and how to get there."""

    to: str
    hop: Hop


#: One tree: the step of every switch.
_Tree = dict[str, _Step]


@dataclass(frozen=True, slots=True)
class Plan:
    """The trees towards every edge. A pure function of adjacency and edges."""

    adjacency: Adjacency
    edges: tuple[str, ...]
    #: By edge and number of the tree.
    trees: dict[str, dict[int, _Tree]] = field(default_factory=dict)
    #: Switch to what it must carry for others: (edge, tree) to how.
    carried: dict[str, dict[tuple[str, int], Hop]] = field(default_factory=dict)
    #: Switch to the slot of every hop with a choice that it may come to use.
    slots: dict[str, dict[Hop, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routes:
    """What every datapath does now. Keys are dpids."""

    plan: Plan
    #: Switch to the trees that it puts its own packets on, and how, by edge.
    used: dict[str, dict[str, tuple[tuple[int, Hop], ...]]] = field(default_factory=dict)
    #: Switch to what it carries on repair trees.
    repairs: dict[str, dict[tuple[str, int], Hop]] = field(default_factory=dict)

    def trees(self, edge: str, switch: str) -> tuple[tuple[int, Hop], ...]:
        """What `switch` uses towards `edge`; empty where there is no way."""
        return self.used.get(switch, {}).get(edge, ())

    def carried(self, switch: str) -> dict[tuple[str, int], Hop]:
        """What `switch` carries for others: (edge, tree) to how."""
        return {**self.plan.carried.get(switch, {}), **self.repairs.get(switch, {})}

    def slots(self, switch: str) -> dict[Hop, int]:
        """The slot of every hop of `switch` with a choice, also of those not used now: from its
        content, so that it stays what it is while others come and go."""
        planned = self.plan.slots.get(switch, {})
        more = {hop for hop in self.repairs.get(switch, {}).values() if hop.protected}
        return _slots({*planned, *more}) if more - planned.keys() else planned

    def differ(self, other: Routes, switch: str) -> bool:
        """Whether `switch` does something else there."""
        if self.used.get(switch) != other.used.get(switch) or self.repairs.get(
            switch
        ) != other.repairs.get(switch):
            return True
        mine, theirs = self.plan, other.plan
        return mine is not theirs and (
            mine.carried.get(switch) != theirs.carried.get(switch)
            or mine.slots.get(switch) != theirs.slots.get(switch)
        )


def plan(adjacency: Adjacency, edges: Iterable[str]) -> Plan:
    """The trees towards every one of `edges` over all of `adjacency`, which must be symmetric."""
    made = Plan(adjacency, tuple(sorted(edges)))
    for edge in made.edges:
        detours = _detours(adjacency, edge)
        trees = made.trees[edge] = dict(
            enumerate(_planned(adjacency, edge, detours), PLANNED.start)
        )
        trees.update(zip(DETOURS, detours, strict=True))
        for ingress in made.edges:
            for tree in trees:
                if tree in PLANNED and ingress in trees[tree]:
                    _carry(made.carried, trees, edge, tree, ingress)
    for switch in adjacency:
        made.slots[switch] = _slots(_hops(made, switch))
    return made


def choose(made: Plan, down: Collection[Place] = ()) -> Routes:
    """What each ingress uses of the plan while the links out of the places `down` do not work."""
    down = frozenset(down)
    routes = Routes(made)
    for edge in made.edges:
        left = []
        whole = {t: _whole(tree, edge, down) for t, tree in _planned_of(made, edge).items()}
        for ingress in made.edges:
            used = tuple(
                (number, made.trees[edge][number][ingress].hop)
                for number, switches in whole.items()
                if ingress in switches
            )
            if used:
                routes.used.setdefault(ingress, {})[edge] = used
            elif ingress != edge:
                left.append(ingress)
        if left:
            _repair(routes, edge, left, down)
    return routes


# --- The plan -----------------------------------------------------------------------------


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


def _next_hops(adjacency: Adjacency, target: str) -> dict[str, list[tuple[str, int]]]:
    """Each switch's choices: neighbours one hop nearer to the target, by each port."""
    distance = _distances(adjacency, target)
    return {
        switch: sorted(
            (near, port)
            for near, ports in adjacency[switch].items()
            if distance.get(near) == d - 1
            for port in ports
        )
        for switch, d in distance.items()
        if d
    }


def _planned(adjacency: Adjacency, edge: str, detours: tuple[_Tree, _Tree]) -> Iterable[_Tree]:
    choices = _next_hops(adjacency, edge)
    distance = _distances(adjacency, edge)
    count, values = _digits(choices, distance)
    ways = _Ways(edge, detours)
    for number in range(count):
        tree: _Tree = {}
        for switch, hops in choices.items():
            to, port = hops[number // values[distance[switch]] % len(hops)]
            others = tuple(p for p in adjacency[switch][to] if p != port)
            tree[switch] = _Step(to, ways.around(switch, to, (port, *others), detours=DETOURS))
        yield tree


def _digits(
    choices: Mapping[str, list[tuple[str, int]]], distance: Mapping[str, int]
) -> tuple[int, dict[int, int]]:
    """How many trees there are, and the place value of the digit that each distance uses,
    farthest first."""
    width: dict[int, int] = {}
    for switch, hops in choices.items():
        d = distance[switch]
        width[d] = max(width.get(d, 1), len(hops))
    values: dict[int, int] = {}
    count = 1
    for d in sorted(width, reverse=True):
        values[d] = count
        count *= width[d]
    return min(count, len(PLANNED)), values


def _detours(adjacency: Adjacency, edge: str) -> tuple[_Tree, _Tree]:
    pairs = independent_trees(adjacency, edge)
    bare: tuple[_Tree, _Tree] = ({}, {})
    for switch, hops in pairs.items():
        for tree, to in zip(bare, hops, strict=True):
            tree[switch] = _Step(to, Hop(adjacency[switch][to]))
    first, second = bare
    ways = _Ways(edge, bare)
    over = DETOURS[1:]
    return {
        s: _Step(to, ways.around(s, to, hop.ports, over)) for s, (to, hop) in first.items()
    }, second


class _Ways:
    """The detours to one edge, and what lies on them."""

    def __init__(self, edge: str, detours: tuple[_Tree, _Tree]) -> None:
        self.edge = edge
        self.trees = dict(zip(DETOURS, detours, strict=True))
        self._on_way: dict[tuple[int, str], frozenset[str]] = {}

    def around(self, switch: str, to: str, ports: tuple[int, ...], detours: Iterable[int]) -> Hop:
        """How `switch` gets to its neighbour `to`, or around it; where that cannot be, around
        the link."""
        known = [d for d in detours if switch in self.trees[d]]
        good = [d for d in known if to not in self.on_way(d, switch)]
        good += [d for d in known if self.trees[d][switch].to != to]
        if not good:
            return Hop(ports)
        return Hop(ports, good[0], self.trees[good[0]][switch].hop.ports)

    def on_way(self, detour: int, switch: str) -> frozenset[str]:
        """The switches after `switch` on its way to the edge."""
        if switch == self.edge:
            return frozenset()
        known = self._on_way.get((detour, switch))
        if known is None:
            to = self.trees[detour][switch].to
            known = self._on_way[detour, switch] = self.on_way(detour, to) | {to}
        return known


def _carry(
    carried: dict[str, dict[tuple[str, int], Hop]],
    trees: Mapping[int, _Tree],
    edge: str,
    tree: int,
    ingress: str,
) -> None:
    """Note at which switches a tree is used from an ingress on, and the detours from there."""
    waiting = [(tree, ingress, False)]
    while waiting:
        number, switch, noting = waiting.pop()
        if switch == edge:
            continue
        to, hop = trees[number][switch]
        if noting:
            here = carried.setdefault(switch, {})
            if (edge, number) in here:
                continue
            here[edge, number] = hop
        waiting.append((number, to, True))
        if hop.detour is not None:
            waiting.append((hop.detour, trees[hop.detour][switch].to, True))


def _hops(made: Plan, switch: str) -> set[Hop]:
    """Every way in which `switch` may come to send something on."""
    hops = set(made.carried.get(switch, {}).values())
    for edge in made.edges if switch in made.edges else ():
        hops |= {tree[switch].hop for tree in _planned_of(made, edge).values() if switch in tree}
    return hops


def _slots(hops: Iterable[Hop]) -> dict[Hop, int]:
    slots: dict[Hop, int] = {}
    taken: set[int] = set()
    for hop in sorted((hop for hop in hops if hop.protected), key=repr):
        slot = _digest(hop) % FAILOVER_SLOTS
        while slot in taken:
            slot = (slot + 1) % FAILOVER_SLOTS
        taken.add(slot)
        slots[hop] = slot
    return slots


# --- What works now -------------------------------------------------------------------------


def _planned_of(made: Plan, edge: str) -> dict[int, _Tree]:
    return {number: tree for number, tree in made.trees[edge].items() if number in PLANNED}


def _whole(tree: _Tree, edge: str, down: frozenset[Place]) -> set[str]:
    """The switches from which every link of the tree works, up to the edge. A tree's steps are
    in the order of their distance."""
    if not down:
        return set(tree)
    whole = {edge}
    for switch, (to, hop) in tree.items():
        if to in whole and (switch, hop.ports[0]) not in down:
            whole.add(switch)
    return whole - {edge}


def _repair(routes: Routes, edge: str, ingresses: list[str], down: frozenset[Place]) -> None:
    """Lay a tree over the links that work for those to whom no planned one is left. Its number
    comes from its shape: another tree most often gets another label, and is laid beside it."""
    working = {
        switch: {
            near: kept
            for near, ports in neighbours.items()
            if (kept := tuple(p for p in ports if (switch, p) not in down))
        }
        for switch, neighbours in routes.plan.adjacency.items()
    }
    choices = _next_hops(working, edge)
    steps: _Tree = {}
    for ingress in ingresses:
        switch = ingress
        while switch != edge and switch in choices and switch not in steps:
            to = choices[switch][0][0]
            steps[switch] = _Step(to, Hop(working[switch][to]))
            switch = to
    if not steps:
        return
    number = REPAIRS[_digest(sorted(steps.items())) % len(REPAIRS)]
    for switch, (_, hop) in steps.items():
        routes.repairs.setdefault(switch, {})[edge, number] = hop
    for ingress in ingresses:
        if ingress in steps:
            routes.used.setdefault(ingress, {})[edge] = ((number, steps[ingress].hop),)


def _digest(value: object) -> int:
    return int.from_bytes(blake2b(repr(value).encode(), digest_size=8).digest(), "big")
