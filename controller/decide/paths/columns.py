"""How is traffic spread over a large fabric, and how far from the best possible is that?

Too many pairs for a program with a column a path: here a column is a tree that carries all
traffic towards one edge (Dantzig-Wolfe decomposition by destination; Ford and Fulkerson, A
Suggested Computation for Maximal Multi-Commodity Network Flows, 1958). Trees are grown by
shortest paths under link prices; a small master program weighs them and gives new prices. The
same prices give a lower bound on the maximum utilisation of any routing, so the answer comes
with a certificate of how good it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import bmat, csr_matrix, vstack

from controller.decide.paths.network import Floats, Ints, Network
from controller.decide.paths.solver import INFINITY, Program
from controller.decide.paths.trees import MAX_TREES, Forest

#: Sweeps over all edges that grow the first trees, each answering the loads so far.
_SWEEPS = 6
#: Edges whose trees are grown at once in a sweep: fewer see each other's loads sooner.
_AT_ONCE = 16
#: How much dearer full links are than empty ones while sweeping, and for the second prices of a
#: round: exponents, as in multiplicative weights (Plotkin, Shmoys, Tardos, 1995).
_SWEEP_STEEPNESS, _ROUND_STEEPNESS = 8.0, 40.0
#: Empty links cost this share of a full one, so that ways stay short.
_FLOOR = 1e-3
#: Prices of links that the master gives nothing for: as small, but not 0.
_FREE = 1e-6
#: Weights below this are rounding errors of the solver.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Spread:
    """`weights` (edges, trees) of the trees in `forest`, the same for every ingress.

    `utilisation` is the worst of any link, and no routing has less than `bound`: the least that
    the traffic can pay for capacity at `prices` (links,), which sum to 1.
    """

    forest: Forest
    weights: Floats
    utilisation: float
    bound: float
    prices: Floats

    @property
    def over_bound(self) -> float:
        """At most this many times the optimum; 1 where there is no traffic."""
        return self.utilisation / self.bound if self.bound > 0 else 1.0


def spread(
    network: Network,
    edges: Ints,
    demand: Floats,
    *,
    background: Floats | None = None,
    seed: int = 0,
    tolerance: float = 0.005,
    rounds: int = 40,
    trees: int = MAX_TREES,
) -> Spread:
    """Spread `demand` (edges, edges; bit/s from row to column) over at most `trees` trees
    towards each edge, above `background` (links,) bit/s that is there already. Ends within
    `tolerance` of the bound or after so many `rounds`. Every demand must have a way."""
    grower = _Grower(network, edges, demand, background)
    pool = _sweep(grower, np.random.default_rng(seed))
    bound, proof = 0.0, np.full(grower.links, 1.0 / grower.links)
    weights, price = _weigh(grower, pool)
    for _ in range(rounds):
        level = grower.level(weights @ pool.loads)
        steep = np.exp(_ROUND_STEEPNESS * (level / max(level.max(), 1e-300) - 1.0))
        fresh = []
        for prices in (price, price + steep / steep.sum()):
            prices = (prices + _FREE) / (prices + _FREE).sum()
            grown, least = grower.grow(np.arange(len(edges)), prices)
            if least > bound:
                bound, proof = least, prices
            fresh.append(grown)
        if float(level.max()) <= (1.0 + tolerance) * bound:
            break
        kept = weights > _NOTHING
        pool = _joined([pool.part(kept), *fresh])
        weights, price = _weigh(grower, pool)
    return _finish(grower, pool, weights, (bound, proof), trees)


@dataclass(frozen=True)
class _Pool:
    """Trees: towards which edge (trees,), the next nodes (trees, nodes), and the utilisation
    that all traffic towards the edge makes on each link (trees, links)."""

    egress: Ints
    following: Ints
    loads: csr_matrix

    def part(self, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> _Pool:
        where = np.flatnonzero(kept)
        return _Pool(self.egress[where], self.following[where], csr_matrix(self.loads[where]))


class _Grower:
    """Grows trees under prices, and knows what they carry."""

    def __init__(
        self, network: Network, edges: Ints, demand: Floats, background: Floats | None
    ) -> None:
        self._network, self.edges = network, edges
        self._table = network.link_table()
        self._supply = np.zeros((len(edges), len(network.nodes)))
        self._supply[:, edges] = demand.T
        self._supply[np.arange(len(edges)), edges] = 0.0
        self.links = len(network.links)
        self.background = (
            np.zeros(self.links) if background is None else background / network.capacity
        )

    def level(self, loads: Floats) -> Floats:
        """Utilisation of each link under loads of trees and the background."""
        level: Floats = np.asarray(loads).reshape(-1) + self.background
        return level

    def grow(self, which: Ints, prices: Floats) -> tuple[_Pool, float]:
        """The cheapest tree towards each of `which` when using up a link costs its price, and
        a bound that holds if these are all edges: no routing's worst utilisation is below what
        the traffic pays at least, by weak duality. `prices` sum to 1."""
        distance, following = self._network.towards(
            self.edges[which], prices / self._network.capacity
        )
        supply = self._supply[which]
        paid = float((np.where(supply > 0, distance, 0.0) * supply).sum())
        bound = paid + float(prices @ self.background)
        following = np.where(following >= 0, following, -1)
        return _Pool(which, following, self._loads(supply, following)), bound

    def _loads(self, supply: Floats, following: Ints) -> csr_matrix:
        """What flows down the trees, all at once: the nodes of most hops to their root first."""
        rows, nodes = np.nonzero(following >= 0)
        parent = following[rows, nodes]
        hops = _hops(following)[rows, nodes]
        size = following.shape[1]
        place, onto = rows * size + nodes, rows * size + parent
        passing = supply.reshape(-1).copy()
        for far in range(int(hops.max(initial=0)), 0, -1):
            here = np.flatnonzero(hops == far)
            np.add.at(passing, onto[here], passing[place[here]])
        # A node has one way on, so every link has one flow of each tree.
        link = self._table[nodes, parent]
        flow = passing[place] / self._network.capacity[link]
        loads = csr_matrix((flow, (rows, link)), shape=(len(supply), self.links))
        loads.eliminate_zeros()
        return loads


def _hops(following: Ints) -> Ints:
    """(trees, nodes): steps to the root, where `following` holds a negative number; 0 there and
    where no way leads."""
    rows = np.arange(len(following))[:, None]
    at = following.copy()
    hops = np.zeros_like(following)
    while (walking := at >= 0).any():
        hops += walking
        at = np.where(walking, following[rows, np.maximum(at, 0)], -1)
    return hops


def _sweep(grower: _Grower, random: np.random.Generator) -> _Pool:
    """First trees: edges in turn answer the average load so far."""
    count = len(grower.edges)
    total, pools = np.zeros(grower.links), []
    for done in range(_SWEEPS):
        for which in np.array_split(random.permutation(count), max(1, count // _AT_ONCE)):
            level = total / max(done, 1) + grower.background
            top = float(level.max()) or 1.0
            prices = np.exp(_SWEEP_STEEPNESS * (level / top - 1.0)) + _FLOOR
            grown, _ = grower.grow(which, prices * (1.0 + _FLOOR * random.random(grower.links)))
            pools.append(grown)
            total += np.asarray(grown.loads.sum(axis=0)).reshape(-1)
    return _joined(pools)


def _joined(pools: list[_Pool]) -> _Pool:
    return _Pool(
        np.concatenate([pool.egress for pool in pools]),
        np.concatenate([pool.following for pool in pools]),
        csr_matrix(vstack([pool.loads for pool in pools])),
    )


def _weigh(grower: _Grower, pool: _Pool) -> tuple[Floats, Floats]:
    """The master program: weights of the trees, summing to 1 for each edge, under which the
    worst utilisation is least; and the links' prices, summing to 1."""
    count, edges = len(pool.egress), len(grower.edges)
    unit = float(pool.loads.max()) or 1.0
    one_each = csr_matrix((np.ones(count), (pool.egress, np.arange(count))), shape=(edges, count))
    rows = bmat([[one_each, None], [pool.loads.T / unit, -np.ones((grower.links, 1))]])
    cost = np.zeros(count + 1)
    cost[-1] = 1.0
    one = np.ones(edges)
    lower = np.concatenate([one, np.full(grower.links, -INFINITY)])
    upper = np.concatenate([one, -grower.background / unit])
    found = Program(cost, csr_matrix(rows), lower, upper, interior=True).solve()
    weights = np.where(found.values[:-1] > _NOTHING, found.values[:-1], 0.0)
    weights /= np.bincount(pool.egress, weights=weights, minlength=edges)[pool.egress]
    price = np.maximum(-found.prices[edges:], 0.0)
    return weights, price / max(float(price.sum()), 1e-300)


def _finish(
    grower: _Grower, pool: _Pool, weights: Floats, proof: tuple[float, Floats], trees: int
) -> Spread:
    """At most `trees` trees towards each edge: equal ones joined, then the heaviest."""
    edges, nodes = len(grower.edges), pool.following.shape[1]
    following = np.full((edges, trees, nodes), -1, dtype=np.int64)
    kept = np.zeros((edges, trees))
    loads = np.zeros(grower.links)
    for edge in range(edges):
        mine = np.flatnonzero((pool.egress == edge) & (weights > 0))
        joined: dict[bytes, tuple[int, float]] = {}
        for tree in mine.tolist():
            key = pool.following[tree].tobytes()
            first, weight = joined.get(key, (tree, 0.0))
            joined[key] = (first, weight + float(weights[tree]))
        chosen = sorted(joined.values(), key=lambda entry: -entry[1])[:trees]
        for place, (tree, weight) in enumerate(chosen):
            following[edge, place] = pool.following[tree]
            kept[edge, place] = weight
        kept[edge] /= kept[edge].sum()
        for place, (tree, _) in enumerate(chosen):
            loads += kept[edge, place] * pool.loads[tree].toarray().reshape(-1)
    utilisation = float(grower.level(loads).max())
    return Spread(Forest(grower.edges, following), kept, utilisation, *proof)
