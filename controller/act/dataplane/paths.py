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
Where none is, but a way exists, a *repair* tree is laid over the links that work. Where no way
is left, the planned trees stay: packets have nothing to lose, and links that only seem to be dead
may carry them. What was decided from the traffic stands beside all this (`weighted.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from controller.act.dataplane.detours import independent_trees
from controller.act.dataplane.pipeline import DETOURS, PLANNED, REPAIRS
from controller.act.dataplane.trees import (
    Adjacency,
    Hop,
    Place,
    Plan,
    Step,
    Tree,
    Ways,
    carry,
    digest,
    slots_of,
)
from controller.act.dataplane.weighted import Weighted

NOTHING_CHOSEN = Weighted()


@dataclass(frozen=True, slots=True)
class Routes:
    """What every datapath does now. Keys are dpids."""

    plan: Plan
    #: Switch to the trees that it puts its own packets on, and how, by edge.
    used: dict[str, dict[str, tuple[tuple[int, Hop], ...]]] = field(default_factory=dict)
    #: Switch to what it carries on repair trees.
    repairs: dict[str, dict[tuple[str, int], Hop]] = field(default_factory=dict)
    #: What was decided beside the plan.
    weighted: Weighted = field(default_factory=Weighted)
    _slots: dict[str, dict[Hop, int]] = field(default_factory=dict, repr=False, compare=False)

    def trees(self, edge: str, switch: str) -> tuple[tuple[int, Hop], ...]:
        """What `switch` uses towards `edge`; empty where no link leads there."""
        return self.used.get(switch, {}).get(edge, ())

    def carried(self, switch: str) -> dict[tuple[str, int], Hop]:
        """What `switch` carries for others: (edge, tree) to how."""
        return {
            **self.plan.carried.get(switch, {}),
            **self.repairs.get(switch, {}),
            **self.weighted.laid.carried.get(switch, {}),
        }

    def slots(self, switch: str) -> dict[Hop, int]:
        """The slot of every hop of `switch` with a choice, also of those not used now: from its
        content, so that it stays what it is while others come and go."""
        known = self._slots.get(switch)
        if known is None:
            planned = self.plan.slots.get(switch, {})
            more = {hop for hop in self.repairs.get(switch, {}).values() if hop.protected}
            more |= self.weighted.laid.hops.get(switch, set())
            known = slots_of({*planned, *more}) if more - planned.keys() else planned
            self._slots[switch] = known
        return known

    def differ(self, other: Routes, switch: str) -> bool:
        """Whether `switch` does something else there."""
        return self.floods_differ(other, switch) or self.weighted.differ(other.weighted, switch)

    def floods_differ(self, other: Routes, switch: str) -> bool:
        """Whether `switch` does something else there with what takes the planned trees alone."""
        if self.used.get(switch) != other.used.get(switch) or self.repairs.get(
            switch
        ) != other.repairs.get(switch):
            return True
        before, after = self.slots(switch), other.slots(switch)
        if before is not after and any(after.get(hop, s) != s for hop, s in before.items()):
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
                    carry(made.carried, trees, edge, tree, ingress)
    for switch in adjacency:
        made.slots[switch] = slots_of(_hops(made, switch))
    return made


def choose(made: Plan, down: Collection[Place] = (), weighted: Weighted = NOTHING_CHOSEN) -> Routes:
    """What each ingress uses of the plan while the links out of the places `down` do not work,
    beside what was chosen for the traffic."""
    down = frozenset(down)
    routes = Routes(made, weighted=weighted)
    for edge in made.edges:
        left = []
        planned = _planned_of(made, edge)
        whole = {t: _whole(tree, edge, down) for t, tree in planned.items()}
        for ingress in made.edges:
            used = tuple(
                (number, hop)
                for number, hop in _begun(planned, ingress)
                if ingress in whole[number]
            )
            if used:
                routes.used.setdefault(ingress, {})[edge] = used
            elif ingress != edge:
                left.append(ingress)
        if left:
            _repair(routes, edge, left, down)
        for ingress in left:
            begun = tuple(_begun(planned, ingress))
            if begun and not routes.trees(edge, ingress):
                routes.used.setdefault(ingress, {})[edge] = begun
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


def _planned(adjacency: Adjacency, edge: str, detours: tuple[Tree, Tree]) -> Iterable[Tree]:
    choices = _next_hops(adjacency, edge)
    distance = _distances(adjacency, edge)
    count, values = _digits(choices, distance)
    ways = Ways(edge, detours)
    for number in range(count):
        tree: Tree = {}
        for switch, hops in choices.items():
            to, port = hops[number // values[distance[switch]] % len(hops)]
            others = tuple(p for p in adjacency[switch][to] if p != port)
            tree[switch] = Step(to, ways.around(switch, to, (port, *others), detours=DETOURS))
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


def _detours(adjacency: Adjacency, edge: str) -> tuple[Tree, Tree]:
    pairs = independent_trees(adjacency, edge)
    bare: tuple[Tree, Tree] = ({}, {})
    for switch, hops in pairs.items():
        for tree, to in zip(bare, hops, strict=True):
            tree[switch] = Step(to, Hop(adjacency[switch][to]))
    first, second = bare
    ways = Ways(edge, bare)
    over = DETOURS[1:]
    return {
        s: Step(to, ways.around(s, to, hop.ports, over)) for s, (to, hop) in first.items()
    }, second


def _hops(made: Plan, switch: str) -> set[Hop]:
    """Every way in which `switch` may come to send something on."""
    hops = set(made.carried.get(switch, {}).values())
    for edge in made.edges if switch in made.edges else ():
        hops |= {tree[switch].hop for tree in _planned_of(made, edge).values() if switch in tree}
    return hops


# --- What works now -------------------------------------------------------------------------


def _planned_of(made: Plan, edge: str) -> dict[int, Tree]:
    return {number: tree for number, tree in made.trees[edge].items() if number in PLANNED}


def _begun(trees: Mapping[int, Tree], ingress: str) -> Iterator[tuple[int, Hop]]:
    """The trees that `ingress` is on, and how they begin there."""
    return ((number, tree[ingress].hop) for number, tree in trees.items() if ingress in tree)


def _whole(tree: Tree, edge: str, down: frozenset[Place]) -> set[str]:
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
    steps: Tree = {}
    for ingress in ingresses:
        switch = ingress
        while switch != edge and switch in choices and switch not in steps:
            to = choices[switch][0][0]
            steps[switch] = Step(to, Hop(working[switch][to]))
            switch = to
    if not steps:
        return
    number = REPAIRS[digest(sorted(steps.items())) % len(REPAIRS)]
    for switch, (_, hop) in steps.items():
        routes.repairs.setdefault(switch, {})[edge, number] = hop
    for ingress in ingresses:
        if ingress in steps:
            routes.used.setdefault(ingress, {})[edge] = ((number, steps[ingress].hop),)
