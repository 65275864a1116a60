"""By which two trees can every switch reach an edge so that no single failure cuts both?

Two spanning trees are independent where the ways that they give a switch to the root share no
link and no switch on between. Whatever next hop a switch has lost, one of the two avoids it.

They follow from an order of the switches in which each has a neighbour before it and one after
it, the root being first and last at once: one tree goes down, the other up (A. Itai and
M. Rodeh, "The multi-tree approach to reliability in distributed networks", 1988). The order is
grown by ears, shortest first, so that the ways stay short (M. Médard, S. Finn, R. Barry and
R. Gallager, "Redundant trees for preplanned recovery in arbitrary vertex-redundant or
edge-redundant graphs", 1999). Where one switch or link alone joins two parts of the fabric,
each part has an order of its own, and at the joint both trees go the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Neighbours = Mapping[str, Collection[str]]
Pair = tuple[str, str]


def independent_trees(neighbours: Neighbours, root: str) -> dict[str, Pair]:
    """The next hop towards `root` in each of the two trees, for every switch from which a way
    leads there. `neighbours` must be symmetric; what is returned depends on nothing but the
    names."""
    ordered = {switch: sorted(near) for switch, near in neighbours.items()}
    found: dict[str, Pair] = {}
    outside = set(ordered) - {root}
    joints = [root]
    for joint in joints:
        for first in ordered.get(joint, ()):
            if first in outside:
                block = _Block(ordered, joint, outside)
                block.grow(first)
                hops = block.hops()
                found.update(hops)
                joints += sorted(hops)
    return found


@dataclass(slots=True)
class _Block:
    """A part of the fabric that no single switch takes apart, with its root."""

    neighbours: Mapping[str, list[str]]
    root: str
    #: Switches that are in no block yet.
    outside: set[str]
    order: list[str] = field(default_factory=list)
    #: Hops to the root by the tree that goes down, and by the one that goes up.
    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    #: Neighbours of the root that go there directly by the tree that goes down; those not here
    #: may do so by the other.
    falling: set[str] = field(default_factory=set)

    def grow(self, first: str) -> None:
        """Take in all of the block that the link from the root to `first` is in."""
        cycle = self._ear({first: first}, {s: s for s in self._around(self.root) if s != first})
        if cycle is None:
            self._insert(0, [first], 0, 0)
            return
        self._insert(0, cycle, 0, 0)
        while self._grow_by_one() or self._grow_by_ear():
            pass

    def _around(self, switch: str) -> list[str]:
        """Neighbours that are in no block yet."""
        return [near for near in self.neighbours[switch] if near in self.outside]

    def _insert(self, at: int, ear: list[str], below: int, above: int) -> None:
        """Put `ear` into the order; its ends are so many hops from the root already."""
        self.order[at:at] = ear
        self.outside.difference_update(ear)
        for index, switch in enumerate(ear):
            self.down[switch] = below + index + 1
            self.up[switch] = above + len(ear) - index
        if not below:
            self.falling.add(ear[0])

    def _grow_by_one(self) -> bool:
        """Take in switches with two neighbours here; whether there were any."""
        candidates = {near for s in (*self.order, self.root) for near in self._around(s)}
        grown = False
        for switch in sorted(candidates):
            at = self._gap(switch)
            if at is not None:
                self._insert(at[0], [switch], at[1], at[2])
                grown = True
        return grown

    def _gap(self, switch: str) -> tuple[int, int, int] | None:
        """Where in the order a switch goes, and how far its neighbours before and after that
        place are from the root; None where it has but one neighbour here."""
        near = set(self.neighbours[switch])
        here = [(index, s) for index, s in enumerate(self.order) if s in near]
        if self.root in near:
            return (here[0][0], 0, min(self.up[s] for _, s in here)) if here else None
        gaps = [
            (
                here[cut][0],
                min(self.down[s] for _, s in here[:cut]),
                min(self.up[s] for _, s in here[cut:]),
            )
            for cut in range(1, len(here))
        ]
        return min(gaps, key=lambda gap: (max(gap[1:]), sum(gap[1:]), gap[0]), default=None)

    def _grow_by_ear(self) -> bool:
        """Take in the shortest way that leaves the block and comes back elsewhere."""
        starts = {
            near: s for s in (*self.order, self.root) for near in self._around(s)
        }  # each has but one neighbour here, or it would have been taken in by itself
        best: list[str] | None = None
        for start in sorted(starts):
            others = {s: at for s, at in starts.items() if at != starts[start]}
            ear = self._ear({start: start}, others)
            if ear is not None and (best is None or len(ear) < len(best)):
                best = ear
        if best is None:
            return False
        position = {switch: index for index, switch in enumerate(self.order)}
        position[self.root] = -1
        below, above = starts[best[0]], starts[best[-1]]
        if position[below] > position[above]:
            best.reverse()
            below, above = above, below
        self._insert(position[below] + 1, best, self.down.get(below, 0), self.up.get(above, 0))
        return True

    def _ear(self, sources: Mapping[str, str], targets: Collection[str]) -> list[str] | None:
        """A shortest way through switches in no block from a source to a target."""
        before: dict[str, str] = dict(sources)
        frontier = sorted(sources)
        while frontier:
            following = []
            for switch in frontier:
                if switch in targets:
                    way = [switch]
                    while way[-1] not in sources:
                        way.append(before[way[-1]])
                    return way[::-1]
                for near in self._around(switch):
                    if near not in before:
                        before[near] = switch
                        following.append(near)
            frontier = following
        return None

    def hops(self) -> dict[str, Pair]:
        """Each switch's next hops by the two trees: among its neighbours before it, and after
        it, the one nearest to the root."""
        near_root = set(self.neighbours[self.root])
        position = {switch: index for index, switch in enumerate(self.order)}
        down, up = {self.root: 0}, {self.root: 0}
        falls: dict[str, str] = {}
        rises: dict[str, str] = {}
        for switch in self.order:
            choices = [s for s in self._inside(switch) if position[s] < position[switch]]
            if switch in near_root and switch in self.falling:
                choices = [self.root]
            falls[switch] = min(choices, key=lambda s: (down[s], s))
            down[switch] = down[falls[switch]] + 1
        for switch in reversed(self.order):
            choices = [s for s in self._inside(switch) if position[s] > position[switch]]
            if switch in near_root and (switch not in self.falling or not choices):
                choices = [self.root]
            rises[switch] = min(choices, key=lambda s: (up[s], s))
            up[switch] = up[rises[switch]] + 1
        return {switch: (falls[switch], rises[switch]) for switch in self.order}

    def _inside(self, switch: str) -> list[str]:
        """Neighbours in this block but for the root."""
        return [s for s in self.neighbours[switch] if s in self.down]
