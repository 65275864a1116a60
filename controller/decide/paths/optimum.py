"""How low can the maximum link utilisation be, whatever the paths? The yardstick of all others.

The linear program has one flow a link and egress edge, so it is over all paths there are
(multi-commodity flow, aggregated by destination).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.sparse import block_diag, coo_matrix, csr_matrix, eye, hstack, kron, vstack

from controller.decide.paths.network import Floats, Ints, Network
from controller.decide.paths.solver import INFINITY, Program

#: Demands are scaled to this sum, which keeps all numbers of the program near 1.
_SUM = 100.0


class Optimum:
    """The least maximum utilisation of one network for any matrix between `edges`; kept, as
    each solution starts from the last."""

    def __init__(self, network: Network, edges: Ints) -> None:
        self._unit = float(network.capacity.max())
        nodes, links = len(network.nodes), len(network.links)
        ones, where = np.ones(links), np.arange(links)
        leaving = coo_matrix((ones, (network.source, where)), shape=(nodes, links))
        entering = coo_matrix((ones, (network.target, where)), shape=(nodes, links))
        balance = csr_matrix(leaving - entering)
        others = [np.flatnonzero(np.arange(nodes) != egress) for egress in edges.tolist()]
        flows = block_diag([balance[kept] for kept in others])
        conserved = flows.shape[0]
        loads = kron(np.ones((1, len(edges))), eye(links))
        capacity = csr_matrix(-network.capacity[:, None] / self._unit)
        rows = vstack([hstack([flows, csr_matrix((conserved, 1))]), hstack([loads, capacity])])
        cost = np.zeros(rows.shape[1])
        cost[-1] = 1.0
        zero = np.zeros(conserved)
        self._program = Program(
            cost,
            csr_matrix(rows),
            np.concatenate([zero, np.full(links, -INFINITY)]),
            np.zeros(rows.shape[0]),
        )
        self._conserved = np.arange(conserved)
        self._scatter = np.concatenate(
            [target * nodes + kept for target, kept in enumerate(others)]
        )
        self._edges, self._nodes = edges, nodes

    def of(self, matrix: Floats) -> float:
        """Least maximum utilisation for `matrix` (edges, edges) in bit/s from row to column;
        SolverError where demand has no way."""
        demand = matrix.copy()
        np.fill_diagonal(demand, 0.0)
        total = float(demand.sum())
        if total <= 0:
            return 0.0
        supply = np.zeros((len(self._edges), self._nodes))
        supply[:, self._edges] = demand.T * (_SUM / total)
        bounds = supply.reshape(-1)[self._scatter]
        self._program.bound(self._conserved, bounds, bounds)
        return self._program.solve().objective * total / _SUM / self._unit


@lru_cache(maxsize=8)
def optimum(network: Network, edges: tuple[int, ...]) -> Optimum:
    """The `Optimum` of a network, kept for next time."""
    return Optimum(network, np.array(edges, dtype=np.int64))


def over_paths(incidence: csr_matrix, pair: Ints, demand: Floats, capacity: Floats) -> float:
    """Least maximum utilisation for `demand` (pairs,) in bit/s when only given paths may be
    used: `incidence` (links, paths), `pair` (paths,) says whose path each is."""
    total = float(demand.sum())
    if total <= 0:
        return 0.0
    paths = incidence.shape[1]
    unit = float(capacity.max())
    chosen = csr_matrix((np.ones(paths), (pair, np.arange(paths))), shape=(len(demand), paths))
    loads = incidence.multiply(demand[pair][None, :] * (_SUM / total))
    rows = vstack(
        [
            hstack([chosen, csr_matrix((len(demand), 1))]),
            hstack([loads, csr_matrix(-capacity[:, None] / unit)]),
        ]
    )
    cost = np.zeros(paths + 1)
    cost[-1] = 1.0
    one = (demand > 0).astype(np.float64)
    program = Program(
        cost,
        csr_matrix(rows),
        np.concatenate([one, np.full(len(capacity), -INFINITY)]),
        np.concatenate([np.where(one > 0, 1.0, INFINITY), np.zeros(len(capacity))]),
    )
    return program.solve().objective * total / _SUM / unit
