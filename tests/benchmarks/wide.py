"""Fabrics and traffic made from a seed, for benchmarks of paths: a wide-area network like those
that operators publish, a fat-tree, and matrices for both."""

from __future__ import annotations

import networkx
import numpy as np
from scipy.spatial import Delaunay

from controller.decide.paths.network import FabricLink, Floats, Network
from topologies.generate import fat_tree
from topologies.model import Role

#: bit/s; what a cable of a wide-area network can have.
MODULES = (1e9, 2.5e9, 10e9, 40e9, 100e9)
#: Light in fibre, over a square of this many metres.
METRES_PER_S, SIDE_M = 2e8, 4e6


def tree(k: int) -> tuple[Network, tuple[str, ...]]:
    """A fat-tree of `k` ports a switch and its edges; 10 Gbit/s, 5 us a link."""
    fabric = fat_tree(k)
    links = [
        FabricLink(a, b, float(cable.capacity_bps), 5e-6)
        for cable in fabric.cables
        for a, b in ((cable.a, cable.b), (cable.b, cable.a))
    ]
    names = tuple(switch.name for switch in fabric.switches)
    return Network(names, tuple(links)), tuple(s.name for s in fabric.of_role(Role.EDGE))


def wan(nodes: int, cables: int, seed: int) -> Network:
    """Random places joined as operators do: all by the shortest cables that reach everywhere
    (a minimum spanning tree), then by others between neighbours (of Delaunay's triangulation)
    until there are `cables`; capacity from modules by what shortest paths would carry of a
    gravity matrix, and four times as much for a cable that cannot be routed around, since the
    optimum would be there and nowhere to be sought. With 197 nodes and 245 cables it is of the
    size of Cogentco in the Internet Topology Zoo (Knight et al., IEEE JSAC 2011)."""
    random = np.random.default_rng(seed)
    place = random.random((nodes, 2))
    near = {
        (min(a, b), max(a, b))
        for corners in Delaunay(place).simplices.tolist()
        for a in corners
        for b in corners
        if a != b
    }
    by_length = sorted(near, key=lambda ends: _metres(place, ends))
    group = list(range(nodes))
    chosen, others = [], []
    for a, b in by_length:
        if group[a] == group[b]:
            others.append((a, b))
            continue
        joined, gone = group[a], group[b]
        group = [joined if g == gone else g for g in group]
        chosen.append((a, b))
    extra = random.permutation(len(others))[: max(0, cables - len(chosen))]
    chosen += [others[index] for index in extra.tolist()]
    ends = [end for a, b in chosen for end in ((a, b), (b, a))]
    latency = [_metres(place, end) / METRES_PER_S for end in ends]
    names = tuple(f"n{node}" for node in range(nodes))

    def made(capacities: list[float]) -> Network:
        links = (
            FabricLink(names[a], names[b], capacity, seconds, seconds * 1000)
            for (a, b), capacity, seconds in zip(ends, capacities, latency, strict=True)
        )
        return Network(names, tuple(links))

    plain = made([1.0] * len(ends))
    carried = _carried(plain, gravity(nodes, random))
    both = np.maximum(carried, carried.reshape(-1, 2)[:, ::-1].reshape(-1))
    bridges = {frozenset(ends) for ends in networkx.bridges(networkx.Graph(chosen))}
    alone = np.array([4.0 if frozenset(end) in bridges else 1.0 for end in ends])
    need = np.minimum(both * alone / both.max(), 1.0) * MODULES[-1]
    return made([next(m for m in MODULES if m >= bps * (1 - 1e-9)) for bps in need.tolist()])


def gravity(edges: int, random: np.random.Generator) -> Floats:
    """Traffic by the product of what two edges weigh, times a factor of each pair's own; both
    are lognormal. (edges, edges), largest entry 1."""
    weight = random.lognormal(0.0, 1.0, edges)
    matrix = np.outer(weight, weight) * random.lognormal(0.0, 0.7, (edges, edges))
    np.fill_diagonal(matrix, 0.0)
    return np.asarray(matrix / matrix.max())


def days(edges: int, per_day: int, count: int, seed: int) -> Floats:
    """Matrices (count, edges, edges) with a daily course and pairs that wander and burst."""
    random = np.random.default_rng(seed)
    mean = gravity(edges, random)
    phase = random.uniform(0.0, 0.3, (edges, edges))
    wander = np.zeros((edges, edges))
    found = []
    for time in range(count):
        wander = 0.95 * wander + 0.1 * random.standard_normal((edges, edges))
        course = 1.0 + 0.5 * np.sin(2 * np.pi * (time / per_day + phase))
        burst = np.where(random.random((edges, edges)) < 0.01, 3.0, 1.0)
        noise = random.lognormal(0.0, 0.1, (edges, edges))
        found.append(mean * course * np.exp(wander) * burst * noise)
    return np.array(found)


def _metres(place: Floats, ends: tuple[int, int]) -> float:
    return float(np.hypot(*(place[ends[0]] - place[ends[1]]))) * SIDE_M


def _carried(network: Network, matrix: Floats) -> Floats:
    """What each link carries when everything takes the shortest path."""
    every = np.arange(len(network.nodes))
    _, following = network.towards(every, network.cost)
    table = network.link_table()
    carried = np.zeros(len(network.links))
    for egress in every.tolist():
        for ingress in every.tolist():
            at = ingress
            while at != egress:
                carried[table[at, following[egress, at]]] += matrix[ingress, egress]
                at = int(following[egress, at])
    return carried
