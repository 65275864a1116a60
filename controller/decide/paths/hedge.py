"""How wrong may a forecast be? Bounds on routing that hold whatever traffic comes.

A hedge of ratio r: no matrix of traffic, foreseen or not, loads any link more than r times the
worst load that routing without forecasts (even over shortest paths) would give. That is the
penalty envelope of COPE (Wang, Xie, Qiu, Yang, Zhang, Greenberg: COPE: Traffic Engineering in
Dynamic Networks, SIGCOMM 2006), taken against ECMP instead of the optimum.

By duality of linear programs, link l keeps to it for every matrix if and only if there are
prices p(l, k) >= 0 over the links k with sum at most r, such that for each pair its share on l,
over l's capacity, is at most the sum over k of p(l, k) times its ECMP share on k over k's
capacity. Prices are columns of the program that chooses the routing, so they bind where it
matters least.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, identity, kron

from controller.decide.paths.network import Floats, Ints
from controller.decide.paths.trees import PathSet

Flags = npt.NDArray[np.bool_]

#: A pair's share of a link counts as too much beyond this.
_BROKEN = 1e-4


@dataclass(frozen=True)
class Hedge:
    """What the bound is taken against, how far it may be exceeded, and what is not chosen.

    ValueError where `ratio` is below 1: only from there on ECMP itself is inside.
    """

    ratio: float
    #: (links, pairs): share of each pair on each link without forecasts.
    ecmp: Floats
    #: (links,) in bit/s
    capacity: Floats
    #: (links, pairs): shares of pairs whose weights are not to be chosen.
    fixed: Floats
    _priced: csr_matrix = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.ratio >= 1:
            raise ValueError(f"the ratio to ECMP is {self.ratio}: ECMP itself has 1; give more")
        priced = csr_matrix((self.ecmp / self.unit[:, None]).T)
        object.__setattr__(self, "_priced", priced)

    @property
    def unit(self) -> Floats:
        """Capacities as shares of the largest."""
        unit: Floats = self.capacity / self.capacity.max()
        return unit

    @property
    def columns(self) -> int:
        """Prices, row by row of p(l, k)."""
        return len(self.capacity) ** 2

    def sums(self) -> tuple[csr_matrix, Floats]:
        """Rows on the columns: the prices of each link sum to at most the ratio."""
        links = len(self.capacity)
        rows = kron(identity(links), np.ones((1, links)))
        return csr_matrix(rows), np.full(links, self.ratio)

    def allowed(self, values: Floats) -> Floats:
        """(links, pairs): share of each pair that the columns' `values` allow on each link."""
        links = len(self.capacity)
        price = np.maximum(values.reshape(links, links), 0.0)
        allowed: Floats = self.unit[:, None] * np.asarray((self._priced @ price.T).T)
        return allowed

    def outside(self, shares: Floats, values: Floats) -> Flags:
        """(links, pairs): where a pair's share, with what is fixed, is more than allowed."""
        outside: Flags = shares + self.fixed > self.allowed(values) + _BROKEN
        return outside

    def rows(self, paths: PathSet, link: Ints, pair: Ints) -> tuple[csr_matrix, csr_matrix, Floats]:
        """A row for each link and pair, on paths and on columns, and its upper bound: the
        pair's share of the link is allowed."""
        links = len(self.capacity)
        shares = csr_matrix(paths.incidence[link])
        row = np.repeat(np.arange(len(link)), np.diff(shares.indptr))
        shares.data = (paths.pair[shares.indices] == pair[row]).astype(np.float64)
        shares.eliminate_zeros()
        priced = csr_matrix(-self._priced[pair])
        own = np.repeat(link, np.diff(priced.indptr))
        spread = csr_matrix(
            (priced.data * self.unit[own], priced.indices + own * links, priced.indptr),
            shape=(len(link), self.columns),
        )
        return shares, spread, -self.fixed[link, pair]
