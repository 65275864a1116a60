"""Which ways may traffic take? For each egress edge a few different trees.

A tree gives every switch one next hop towards the edge. A packet's label names (edge, tree), so
whatever is chosen among trees can be forwarded with one rule a label at each core switch, and a
pair of edges has as many ways as its egress has trees that differ for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from controller.decide.paths.network import Floats, Ints, Network

#: A label names a tree in 4 bits.
MAX_TREES = 16

#: A link costs this many times more for each earlier tree in which its switch took it.
_AVOID = 1.6
#: Logarithm of the factor that costs are varied by, one standard deviation: trees that only
#: avoid each other go the same few ways everywhere. Of 60 random networks of 5 to 14 nodes, the
#: optimum over paths on 16 trees is then that over all paths in 59; without in 50.
_VARIED = 1.0
#: Two costs are equal when they differ by less than this share.
_TIE = 1e-9


@dataclass(frozen=True)
class Forest:
    """`following` (edges, trees, nodes): next node towards each edge in each tree; -1 at the
    edge itself, where no way leads, and in trees that are not there. Edges are positions in the
    network."""

    edges: Ints
    following: Ints

    def size(self, edge: int) -> int:
        """How many trees there are towards an edge, by its place in `edges`."""
        return int((self.following[edge] >= 0).any(axis=1).sum())


@dataclass(frozen=True)
class PathSet:
    """Different paths between edges. A pair is numbered ingress x edges + egress.

    `pair`, `tree`, `latency` (s), `cost`: (paths,), in order of pairs; `incidence`
    (links, paths): 1 where the path uses the link.
    """

    edges: int
    pair: Ints
    tree: Ints
    latency: Floats
    cost: Floats
    incidence: csr_matrix
    #: (pairs, trees): the path that a tree gives a pair, or -1.
    of_tree: Ints

    def even(self) -> Floats:
        """Weights (paths,) of routing without forecasts: even over a pair's paths of least
        cost, as ECMP does (RFC 2992)."""
        least = np.full(self.edges**2, np.inf)
        np.minimum.at(least, self.pair, self.cost)
        cheapest = (self.cost <= least[self.pair] * (1 + _TIE)).astype(np.float64)
        count = np.bincount(self.pair, weights=cheapest, minlength=self.edges**2)
        weights: Floats = cheapest / count[self.pair]
        return weights

    def part(self, kept: npt.NDArray[np.bool_]) -> PathSet:
        """Some of the paths."""
        where = np.flatnonzero(kept)
        renamed = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
        return PathSet(
            self.edges,
            self.pair[where],
            self.tree[where],
            self.latency[where],
            self.cost[where],
            csr_matrix(self.incidence.tocsc()[:, where]),
            renamed[self.of_tree],
        )

    def nodes(self, network: Network, forest: Forest, path: int) -> list[str]:
        """The nodes that a path visits, in order."""
        ingress, egress = divmod(int(self.pair[path]), self.edges)
        following = forest.following[egress, self.tree[path]]
        at, end = int(forest.edges[ingress]), int(forest.edges[egress])
        names = [network.nodes[at]]
        while at != end:
            at = int(following[at])
            names.append(network.nodes[at])
        return names

    def shares(self, weights: Floats) -> csr_matrix:
        """Share of each pair's demand on each link, (links, pairs), under path weights."""
        pairs = self.edges * self.edges
        spread = csr_matrix(
            (weights, (np.arange(len(self.pair)), self.pair)), shape=(len(self.pair), pairs)
        )
        return csr_matrix(self.incidence @ spread)

    def loads(self, weights: Floats, demand: Floats) -> Floats:
        """bit/s on each link when `demand` (pairs,) takes the paths by `weights`."""
        loads: Floats = self.incidence @ (weights * demand[self.pair])
        return loads


def different(
    network: Network, edges: Ints, count: int, seed: int = 0, kept: Forest | None = None
) -> Forest:
    """Up to `count` trees towards each edge: by least cost, by least latency, and further ones
    kept off the links that earlier ones took. `seed` picks among equals.

    Trees of `kept`, which is of the same nodes and edges, stay in their places where they are
    still whole, so that after a failure only labels that led over it mean something new.
    """
    random = np.random.default_rng(seed)
    table = network.link_table()
    level = np.full(len(network.links), float(network.cost.mean() if len(network.links) else 1.0))
    reaching = np.isfinite(network.towards(edges, network.cost)[0])
    following = np.full((len(edges), count, len(network.nodes)), -1, dtype=np.int64)
    for number, edge in enumerate(edges.tolist()):
        places = following[number]
        if kept is not None:
            places[:] = _whole(kept.following[number, :count], table, reaching[number], edge)
        free = [place for place in range(count) if not (places[place] >= 0).any()]
        taken = np.zeros(len(network.links))
        for tree in places:
            _take(taken, table, tree)
        found = {tree.tobytes() for tree in places}
        for attempt in range(3 * count):
            if not free:
                break
            # Costs may differ by so much that avoiding would never turn to the dear ones.
            price = (network.cost if attempt % 2 == 0 else level) * _AVOID**taken
            if attempt == 1 and network.latency.any():
                price = network.latency + _TIE * network.cost
            elif attempt:
                price = price * np.exp(_VARIED * random.standard_normal(len(taken)))
            tree = np.maximum(network.towards(np.array([edge]), price)[1][0], -1)
            _take(taken, table, tree)
            if tree.tobytes() not in found:
                places[free.pop(0)] = tree
                found.add(tree.tobytes())
    return Forest(edges, following)


def _take(taken: Floats, table: Ints, tree: Ints) -> None:
    nodes = np.flatnonzero(tree >= 0)
    taken[table[nodes, tree[nodes]]] += 1


def _whole(trees: Ints, table: Ints, reaching: npt.NDArray[np.bool_], edge: int) -> Ints:
    """`trees` (trees, nodes), with nothing in the place of those that use links which are gone
    or that miss a node that could reach the edge."""
    nodes = np.arange(len(reaching))
    linked = (trees < 0) | (table[nodes, np.maximum(trees, 0)] >= 0)
    needed = reaching & (nodes != edge)
    whole = (linked & ((trees >= 0) | ~needed)).all(axis=1)
    return np.where(whole[:, None], trees, -1)


def path_set(network: Network, forest: Forest) -> PathSet:
    """The different paths that the trees give each pair of edges; of equal ones the lowest
    tree's is kept."""
    edges, count, _ = forest.following.shape
    egress, tree, ingress = (
        part.reshape(-1)
        for part in np.meshgrid(np.arange(edges), np.arange(count), np.arange(edges), indexing="ij")
    )
    there = (egress != ingress) & (forest.following[egress, tree, forest.edges[ingress]] >= 0)
    egress, tree, ingress = egress[there], tree[there], ingress[there]
    rows, columns = _walk(network, forest, egress, tree, ingress)
    pair = ingress * edges + egress
    # Paths of a pair are the same when the same links make them up: sums of random numbers
    # tell them apart without comparing lists.
    mark = np.random.default_rng(0).integers(1 << 62, size=len(network.links), dtype=np.uint64)
    sums = np.zeros(len(pair), dtype=np.uint64)
    np.add.at(sums, columns, mark[rows])
    order = np.lexsort((tree, sums, pair))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(pair[order]) != 0) | (sums[order][1:] != sums[order][:-1])
    kept = order[first]
    place = np.lexsort((tree[kept], pair[kept]))
    rank = np.empty(len(kept), dtype=np.int64)
    rank[place] = np.arange(len(kept))
    of_tree = np.full((edges * edges, count), -1, dtype=np.int64)
    of_tree[pair[order], tree[order]] = rank[np.cumsum(first) - 1]
    kept = kept[place]
    every = csr_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(len(network.links), len(pair))
    ).tocsc()
    incidence = csr_matrix(every[:, kept])
    latency = np.asarray(incidence.T @ network.latency)
    cost = np.asarray(incidence.T @ network.cost)
    return PathSet(edges, pair[kept], tree[kept], latency, cost, incidence, of_tree)


def _walk(
    network: Network, forest: Forest, egress: Ints, tree: Ints, ingress: Ints
) -> tuple[Ints, Ints]:
    """Links, and whose they are, of the paths that start at `ingress`, all at once."""
    table = network.link_table()
    at = forest.edges[ingress].copy()
    walking = np.arange(len(at))
    rows, columns = [], []
    while len(walking):
        following = forest.following[egress[walking], tree[walking], at[walking]]
        rows.append(table[at[walking], following])
        columns.append(walking)
        at[walking] = following
        walking = walking[following != forest.edges[egress[walking]]]
    empty = [np.zeros(0, dtype=np.int64)]
    return np.concatenate(rows or empty), np.concatenate(columns or empty)
