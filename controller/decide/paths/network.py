"""What can carry traffic: nodes, directed links, and what shortest-path routing makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra

from controller.decide.paths.links import FabricLink

__all__ = ["FabricLink", "Floats", "Ints", "Network", "PathsError"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class PathsError(ValueError):
    """Input that no paths can be decided on; each of `problems` names one thing and its mend."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Network:
    """Nodes and links in a fixed order; arrays over links follow it.

    PathsError where a link cannot be used, naming every such link.
    """

    nodes: tuple[str, ...]
    links: tuple[FabricLink, ...]
    source: Ints = field(init=False, repr=False, compare=False)
    target: Ints = field(init=False, repr=False, compare=False)
    #: bit/s
    capacity: Floats = field(init=False, repr=False, compare=False)
    #: seconds
    latency: Floats = field(init=False, repr=False, compare=False)
    cost: Floats = field(init=False, repr=False, compare=False)
    index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = [*_problems(self.nodes, self.links)]
        if problems:
            raise PathsError(*problems)
        index = {name: number for number, name in enumerate(self.nodes)}
        values = {
            "index": index,
            "source": np.array([index[link.source] for link in self.links], dtype=np.int64),
            "target": np.array([index[link.target] for link in self.links], dtype=np.int64),
            "capacity": np.array([link.capacity_bps for link in self.links], dtype=np.float64),
            "latency": np.array([link.latency_s for link in self.links], dtype=np.float64),
            "cost": np.array([link.cost for link in self.links], dtype=np.float64),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def numbers(self, names: Sequence[str]) -> Ints:
        """Positions of nodes; PathsError for names that the network does not have."""
        unknown = [name for name in names if name not in self.index]
        if unknown:
            raise PathsError(
                f"{', '.join(unknown)}: no such node in the network: "
                "name edges as the links name their ends"
            )
        return np.array([self.index[name] for name in names], dtype=np.int64)

    def link_table(self) -> Ints:
        """(nodes, nodes): the link from one to the other, or -1."""
        table = np.full((len(self.nodes), len(self.nodes)), -1, dtype=np.int64)
        table[self.source, self.target] = np.arange(len(self.links))
        return table

    def towards(self, targets: Ints, price: Floats) -> tuple[Floats, Ints]:
        """Least sums of `price` (one positive number a link) towards each target, and the next
        node on that way, both (targets, nodes): inf and a negative number where none leads."""
        size = len(self.nodes)
        graph = csr_matrix((price, (self.target, self.source)), shape=(size, size))
        distance, following = dijkstra(graph, indices=targets, return_predecessors=True)
        return np.atleast_2d(distance), np.atleast_2d(following).astype(np.int64)

    def islands(self) -> tuple[tuple[str, ...], ...]:
        """Nodes that reach each other both ways, the largest group first."""
        if not self.nodes:
            return ()
        size = len(self.nodes)
        graph = csr_matrix(
            (np.ones(len(self.links)), (self.source, self.target)), shape=(size, size)
        )
        _, label = connected_components(graph, directed=True, connection="strong")
        groups: dict[int, list[str]] = {}
        for name, number in zip(self.nodes, label.tolist(), strict=True):
            groups.setdefault(number, []).append(name)
        return tuple(sorted(map(tuple, groups.values()), key=len, reverse=True))

    def without(self, links: Iterable[tuple[str, str]]) -> Network:
        """The network after links, named by their ends, have failed."""
        gone = frozenset(links)
        kept = (link for link in self.links if (link.source, link.target) not in gone)
        return Network(self.nodes, tuple(kept))


def _problems(nodes: Sequence[str], links: Sequence[FabricLink]) -> Iterable[str]:
    known = set(nodes)
    if len(known) != len(nodes):
        twice = sorted({name for name in nodes if nodes.count(name) > 1})
        yield f"{', '.join(twice)}: the same node is given twice: give each once"
    seen: set[tuple[str, str]] = set()
    for link in links:
        for end in (link.source, link.target):
            if end not in known:
                yield f"link {link.name}: {end} is no node of the network: add it or drop the link"
        if link.source == link.target:
            yield f"link {link.name}: it leads back to its own node: drop it"
        if (link.source, link.target) in seen:
            yield f"link {link.name}: given twice: join parallel links or keep one of them"
        seen.add((link.source, link.target))
        yield from _wrong_numbers(link)


def _wrong_numbers(link: FabricLink) -> Iterable[str]:
    if not (math.isfinite(link.capacity_bps) and link.capacity_bps > 0):
        yield (
            f"link {link.name}: capacity is {link.capacity_bps} bit/s: it must be above 0; "
            "give it in the topology, or take the port's speed"
        )
    if not (math.isfinite(link.latency_s) and link.latency_s >= 0):
        yield f"link {link.name}: latency is {link.latency_s} s: measure it again, or give 0"
    if not (math.isfinite(link.cost) and link.cost > 0):
        yield f"link {link.name}: cost is {link.cost}: it must be above 0 (1 is a hop)"
