"""What is a tree towards an edge made of? Steps, their protection by detours, and which switches
must know of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from controller.act.dataplane.pipeline import DETOURS, FAILOVER_SLOTS

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


class Step(NamedTuple):
    """A tree at one switch: the neighbour, and how to get there."""

    to: str
    hop: Hop


#: A tree: the step of every switch.
Tree = dict[str, Step]


@dataclass(frozen=True, slots=True)
class Plan:
    """The trees towards every edge. A pure function of adjacency and edges."""

    adjacency: Adjacency
    edges: tuple[str, ...]
    #: By edge and number of the tree.
    trees: dict[str, dict[int, Tree]] = field(default_factory=dict)
    #: Switch to what it must carry for others: (edge, tree) to how.
    carried: dict[str, dict[tuple[str, int], Hop]] = field(default_factory=dict)
    #: Switch to the slot of every hop with a choice that it may come to use.
    slots: dict[str, dict[Hop, int]] = field(default_factory=dict)


class Ways:
    """The detours to one edge, and what lies on them."""

    def __init__(self, edge: str, detours: tuple[Tree, Tree]) -> None:
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


def carry(
    carried: dict[str, dict[tuple[str, int], Hop]],
    trees: Mapping[int, Tree],
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


def slots_of(hops: Iterable[Hop]) -> dict[Hop, int]:
    """A slot for each of `hops` that has a choice, made from its content."""
    slots: dict[Hop, int] = {}
    taken: set[int] = set()
    for hop in sorted((hop for hop in hops if hop.protected), key=repr):
        slot = digest(hop) % FAILOVER_SLOTS
        while slot in taken:
            slot = (slot + 1) % FAILOVER_SLOTS
        taken.add(slot)
        slots[hop] = slot
    return slots


def digest(value: object) -> int:
    """64 bits that depend on what `value` looks like, the same in every process."""
    return int.from_bytes(blake2b(repr(value).encode(), digest_size=8).digest(), "big")
