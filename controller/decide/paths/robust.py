"""Which shares of each pair's traffic should take which path, whatever scenario comes?

One linear program over all scenarios: the expected worst utilisation, each scenario's measured
against its own optimum, is minimised; or path costs such as latency, with utilisation above a
ceiling as what to avoid. Most rows never bind, so they are added as they are broken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import bmat, csr_matrix

from controller.decide.paths.hedge import Flags, Hedge
from controller.decide.paths.network import Floats
from controller.decide.paths.solver import INFINITY, Program
from controller.decide.paths.trees import PathSet

#: A row counts as broken beyond this share; what is decided here is no more exact than that.
_BROKEN = 1e-3
#: Links of each scenario that are rows from the start: those that the last weights load most.
_FIRST = 4
#: All costs are given to the solver times this, well above its tolerance of 1e-7: else it
#: loses itself among choices that hardly differ.
_COST = 100.0
#: Loads below this share of a link's capacity are not told to the solver.
_NOTHING = 1e-7


@dataclass(frozen=True, slots=True)
class Aim:
    """What to minimise: `path_cost` (paths,) for all of a pair's traffic on the path, plus for
    each scenario `weight` (scenarios,) times how far the worst link exceeds its `room`
    (scenarios, links), a share of its capacity, in units of `scale` (scenarios,)."""

    path_cost: Floats
    weight: Floats
    scale: Floats
    room: Floats


@dataclass(frozen=True)
class Choice:
    """`weights` (paths,), each pair's summing to 1, and where the hedge held them back."""

    weights: Floats
    hedged: Flags | None = None


def choose(
    paths: PathSet,
    capacity: Floats,
    demands: Floats,
    aim: Aim,
    hedge: Hedge | None = None,
    last: Choice | None = None,
) -> Choice:
    """Weights of the paths for `demands` (scenarios, pairs) in bit/s. `last` is an earlier
    choice on the same paths: it only makes this one faster."""
    problem = _Problem(paths, capacity, demands, aim, hedge)
    program = problem.program()
    have = problem.worst(last.weights if last else shortest(paths, aim.path_cost))
    program.add(*problem.utilisation(have))
    capped = problem.nothing_capped()
    if hedge and last and last.hedged is not None:
        capped = last.hedged.copy()
        program.add(*problem.caps(hedge, capped))
    while True:
        values = problem.split(program.solve().values)
        broken = problem.broken(values) & ~have
        outside = problem.outside(values) & ~capped
        if not (broken.any() or outside.any()):
            break
        if broken.any():
            program.add(*problem.utilisation(broken))
        if hedge and outside.any():
            program.add(*problem.caps(hedge, outside))
        have |= broken
        capped |= outside
    weights = _clean(paths, values.weights)
    if not hedge:
        return Choice(weights)
    return Choice(weights, problem.binding(values, capped))


def shortest(paths: PathSet, cost: Floats) -> Floats:
    """Everything on each pair's cheapest path; the first of equal ones."""
    order = np.lexsort((cost, paths.pair))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(paths.pair[order]) != 0
    weights = np.zeros(len(order))
    weights[order[first]] = 1.0
    return weights


def _clean(paths: PathSet, weights: Floats) -> Floats:
    """Rounding errors of the solver taken out, and sums of exactly 1 again."""
    kept = np.where(weights > 1e-9, weights, 0.0)
    sums = np.bincount(paths.pair, weights=kept, minlength=paths.edges**2)
    clean: Floats = kept / sums[paths.pair]
    return clean


@dataclass(frozen=True, slots=True)
class _Values:
    """A solution by its kinds of columns."""

    weights: Floats
    excess: Floats
    hedge: Floats


class _Problem:
    """Blocks of the program. Columns: the paths, each scenario's excess, those of the hedge."""

    def __init__(
        self,
        paths: PathSet,
        capacity: Floats,
        demands: Floats,
        aim: Aim,
        hedge: Hedge | None,
    ) -> None:
        self._paths, self._capacity, self._aim, self._hedge = paths, capacity, aim, hedge
        self._demand = demands[:, paths.pair]
        self._incidence = csr_matrix(paths.incidence)
        self._extra = hedge.columns if hedge else 0

    def program(self) -> Program:
        """The program of rows that are always there: each pair's weights sum to 1, and prices
        to no more than the ratio."""
        paths, scenarios = len(self._paths.pair), len(self._demand)
        present, number = np.unique(self._paths.pair, return_inverse=True)
        chosen = csr_matrix((np.ones(paths), (number, np.arange(paths))))
        lower = upper = np.ones(len(present))
        rows = self._rows(chosen, None, None)
        costs = (self._aim.path_cost, self._aim.weight, np.zeros(self._extra))
        cost = _COST * np.concatenate(costs)
        if self._hedge:
            sums, most = self._hedge.sums()
            rows = bmat([[rows], [bmat([[csr_matrix((len(most), paths + scenarios)), sums]])]])
            lower = np.concatenate([lower, np.full(len(most), -INFINITY)])
            upper = np.concatenate([upper, most])
        return Program(cost, csr_matrix(rows), lower, upper)

    def utilisation(self, which: Flags) -> tuple[csr_matrix, Floats]:
        """A row for each of `which` (scenarios, links): utilisation less the scenario's excess
        is within the room."""
        scenario, link = np.nonzero(which)
        loads = csr_matrix(self._incidence[link])
        row = np.repeat(np.arange(len(link)), np.diff(loads.indptr))
        unit = self._capacity[link] * self._aim.scale[scenario]
        loads.data = self._demand[scenario[row], loads.indices] / unit[row]
        loads.data[loads.data < _NOTHING] = 0.0
        loads.eliminate_zeros()
        excess = csr_matrix(
            (-np.ones(len(link)), (np.arange(len(link)), scenario)),
            shape=(len(link), len(self._demand)),
        )
        room = self._aim.room[scenario, link] / self._aim.scale[scenario]
        return self._rows(loads, excess, None), room

    def caps(self, hedge: Hedge, which: Flags) -> tuple[csr_matrix, Floats]:
        """A row for each of `which` (links, pairs): the pair's share is what is allowed."""
        link, pair = np.nonzero(which)
        shares, priced, most = hedge.rows(self._paths, link, pair)
        return self._rows(shares, None, priced), most

    def split(self, values: Floats) -> _Values:
        """A solution by its kinds of columns."""
        paths, scenarios = len(self._paths.pair), len(self._demand)
        return _Values(
            values[:paths], values[paths : paths + scenarios], values[paths + scenarios :]
        )

    def worst(self, weights: Floats) -> Flags:
        """(scenarios, links): the rows to begin with."""
        over = self._over(weights)
        first = min(_FIRST, over.shape[1])
        links = np.argpartition(-over, first - 1, axis=1)[:, :first]
        worst = np.zeros(over.shape, dtype=bool)
        worst[np.arange(len(over))[:, None], links] = True
        return worst

    def broken(self, values: _Values) -> Flags:
        """(scenarios, links): where room and excess are not enough."""
        allowed = values.excess[:, None]
        broken: Flags = self._over(values.weights) > allowed + _BROKEN * np.maximum(allowed, 1.0)
        return broken

    def nothing_capped(self) -> Flags:
        """(links, pairs), all False."""
        return np.zeros((len(self._capacity), self._paths.edges**2), dtype=bool)

    def outside(self, values: _Values) -> Flags:
        """(links, pairs): where the hedge is left."""
        if self._hedge is None:
            return self.nothing_capped()
        shares = self._paths.shares(values.weights).toarray()
        return self._hedge.outside(shares, values.hedge)

    def binding(self, values: _Values, capped: Flags) -> Flags:
        """Those of `capped` that hold the choice back."""
        assert self._hedge is not None
        shares = self._paths.shares(values.weights).toarray()
        held: Flags = shares + self._hedge.fixed >= self._hedge.allowed(values.hedge) - _BROKEN
        return capped & held

    def _over(self, weights: Floats) -> Floats:
        load = np.asarray((self._incidence @ (weights * self._demand).T).T) / self._capacity
        over: Floats = (load - self._aim.room) / self._aim.scale[:, None]
        return over

    def _rows(
        self, paths: csr_matrix, excess: csr_matrix | None, extra: csr_matrix | None
    ) -> csr_matrix:
        count = paths.shape[0]
        parts = [paths, csr_matrix((count, len(self._demand))) if excess is None else excess]
        if self._extra:
            parts.append(csr_matrix((count, self._extra)) if extra is None else extra)
        return csr_matrix(bmat([parts]))
